// Runner: has batches run, and gives each request what came of it. It knows neither queue nor lock,
// and is called by any number of threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "batch.h"
#include "batcher.h"

namespace lane {

// What went through one run, and what came of it: outputs for all, or a refusal.
struct Ran {
  std::vector<RequestPtr> requests;
  BatchRun run;  // without outputs for a refusal
  Refusal refusal;

  Seconds waited(const Request& request) const { return run.started - request.arrived; }
  Seconds took(const Request& request) const { return run.done - request.arrived; }

  Outcome outcome(const Request& request, std::int64_t first) const {
    if (!run.outputs) return refusal;
    return Answer{run.outputs, first, request.rows, waited(request), took(request), run.stages};
  }

  void tell(const Request& request, Execution& execution) const {
    execution.request_rows.push_back(request.rows);
    execution.queue_seconds.push_back(waited(request));
    execution.request_seconds.push_back(took(request));
  }
};

Refusal too_late(const char* details);

class Runner {
 public:
  // `buckets` are ascending.
  Runner(std::shared_ptr<Executor> executor, std::shared_ptr<BatchObserver> observer,
         std::string name, std::vector<std::int64_t> buckets);

  // What came of each request. Those of a batch that failed run again one by one, so that nobody
  // fails for what another sent.
  std::vector<Ran> run(std::vector<RequestPtr> requests);
  // Gives each request of a run its outcome, unless it was cancelled meanwhile.
  void hand_out(const Ran& ran);
  // Fails those that nobody else has completed.
  void refuse(const std::vector<RequestPtr>& requests, const Refusal& refusal);

  // In the last batch.
  Seconds seconds_per_request() const { return seconds_per_request_.load(); }
  // The executor, once nobody runs anything any more.
  std::shared_ptr<Executor> let_go() { return std::move(executor_); }

 private:
  std::vector<Ran> run_again(std::vector<RequestPtr> requests, const std::string& why);
  std::exception_ptr try_run(Ran& ran);

  std::shared_ptr<Executor> executor_;
  const std::shared_ptr<BatchObserver> observer_;
  const std::string name_;
  const std::vector<std::int64_t> buckets_;
  std::atomic<Seconds> seconds_per_request_{0};
};

}  // namespace lane
