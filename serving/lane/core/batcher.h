// Batcher: requests that arrive together run together. Knows no transport, no message, no Python.
//
// One contract with serving/batcher.py, clause by clause: tests/test_batcher.py and
// tests/test_batcher_properties.py run against both. It owns the queue and the threads that run
// batches, and completes each request exactly once.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "executor.h"
#include "request.h"
#include "request_queue.h"
#include "status.h"

namespace lane {

struct BatcherOptions {
  std::string name = "batcher";
  std::int64_t max_batch_size = 1;
  Seconds max_queue_delay = 0;
  std::size_t max_queue_size = 256;
  int instance_count = 1;
  std::vector<std::int64_t> buckets;
  int priority_levels = 1;
};

// What one batch cost; one entry per answered caller's request. serving/execution.py tells more.
struct Execution {
  std::int64_t rows = 0;  // of all callers in the batch, without padding
  std::vector<std::int64_t> request_rows;
  std::vector<Seconds> queue_seconds;
  std::vector<Seconds> request_seconds;
  Stages stages;
};

// Who hears of what a batcher does. Throws nothing; called on the batcher's threads.
class BatchObserver {
 public:
  virtual ~BatchObserver() = default;
  // A batch that held a caller's request ran; before its answers go out.
  virtual void ran(const Execution&) {}
  // So many callers' requests wait now. The batcher's lock is held, which threads take that hold
  // Python's, and the one that moves bytes: it must neither wait nor take Python's.
  virtual void waiting(std::size_t) {}
  // So many batches run more, or fewer, than before.
  virtual void busy(int) {}
  // All requests of a run, or of a refusal, have been completed: what they left may go out
  // together.
  virtual void handed_out() {}
  // Requests failed together and none by itself. One that fails is for its caller's side to log, by
  // its refusal's `cause`.
  virtual void failed(const std::string& warning) { (void)warning; }
};

class Batcher {
 public:
  Batcher(std::shared_ptr<Executor> executor, BatcherOptions options,
          std::shared_ptr<BatchObserver> observer = std::make_shared<BatchObserver>());
  // Closes at once, and waits for what runs; but not where one of its own threads lets it go.
  ~Batcher();
  Batcher(const Batcher&) = delete;
  Batcher& operator=(const Batcher&) = delete;

  // Queue the request, which will be completed once, on another thread. Where a refusal is returned
  // it is the caller's to tell. With `wake` false a thread hears of it only by `wake()`: so that
  // what arrives together is in the queue before a thread looks.
  std::optional<Refusal> submit(RequestPtr request, bool wake = true);
  void wake();
  // It is claimed: take it out, if it waits.
  void withdraw(const Request& request);
  // Take nothing more, let what is queued or runs finish; whether all did in so many seconds.
  // Otherwise what is queued is refused, and the threads end when their runs do.
  bool close(Seconds timeout);
  // Callers' requests that wait to be taken into a batch.
  std::size_t pending() const;

  const BatcherOptions& options() const { return options_; }

 private:
  struct State;

  void start();
  bool on_own_thread() const;
  void join();

  BatcherOptions options_;
  std::shared_ptr<State> state_;
  std::mutex joining_;
  std::vector<std::thread> threads_;
  std::vector<std::thread::id> ids_;
};

}  // namespace lane
