// What tests of queue and batcher ask and run: requests of doubles, and a model that doubles them
// and waits until it is told. The same as tests/test_batcher.py has.
#pragma once

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <ostream>  // doctest prints pointers with it
#include <string>
#include <utility>
#include <vector>

#include "batcher.h"

namespace lane {

// For what should happen at once: a test that passes never takes it.
constexpr Seconds kPatience = 20;

using Values = std::vector<double>;

// Counts up from any thread; whoever waits takes one off.
class Semaphore {
 public:
  void release() {
    const std::lock_guard<std::mutex> guard(lock_);
    ++count_;
    changed_.notify_all();
  }
  bool acquire(Seconds seconds = kPatience) {
    std::unique_lock<std::mutex> guard(lock_);
    const std::chrono::duration<double> most(seconds);
    if (!changed_.wait_for(guard, most, [&] { return count_ > 0; })) return false;
    --count_;
    return true;
  }

 private:
  std::mutex lock_;
  std::condition_variable changed_;
  int count_ = 0;
};

// Open or shut. Who waits goes on once it has opened since his ticket, or let those through.
class Gate {
 public:
  void set(bool open) {
    const std::lock_guard<std::mutex> guard(lock_);
    open_ = open;
    opened_ += open;
    changed_.notify_all();
  }
  void let_through() {
    const std::lock_guard<std::mutex> guard(lock_);
    ++opened_;
    changed_.notify_all();
  }
  int ticket() {
    const std::lock_guard<std::mutex> guard(lock_);
    return opened_;
  }
  bool pass(int ticket) {
    std::unique_lock<std::mutex> guard(lock_);
    const std::chrono::duration<double> most(kPatience);
    return changed_.wait_for(guard, most, [&] { return open_ || opened_ != ticket; });
  }

 private:
  std::mutex lock_;
  std::condition_variable changed_;
  bool open_ = true;
  int opened_ = 0;
};

// Rows of `width` doubles.
inline LayoutPtr layout_of(std::int64_t width) {
  auto layout = std::make_shared<Layout>();
  const auto bytes = static_cast<std::size_t>(width) * sizeof(double);
  layout->inputs.push_back({"x", "FP64", {width}, bytes});
  return layout;
}

inline Values doubles(const std::byte* bytes, std::size_t size) {
  Values values(size / sizeof(double));
  if (!values.empty()) std::memcpy(values.data(), bytes, size);
  return values;
}
inline Values doubles(const Bytes& bytes) { return doubles(bytes.begin(), bytes.size); }
inline Values doubles(const std::vector<std::byte>& bytes) {
  return doubles(bytes.data(), bytes.size());
}

inline Tensor tensor_of(std::string name, std::vector<std::int64_t> shape, const Values& values) {
  Tensor tensor{std::move(name), "FP64", std::move(shape), {}};
  tensor.data.resize(values.size() * sizeof(double));
  if (!values.empty()) std::memcpy(tensor.data.data(), values.data(), tensor.data.size());
  return tensor;
}

// Doubles; each run, once held, waits for `release`. Remembers what it was given.
class Doubler : public Executor {
 public:
  void hold() { gate_.set(false); }
  void release() { gate_.set(true); }
  void release_those_that_run() { gate_.let_through(); }
  bool wait_until_entered() { return entered.acquire(); }
  std::vector<Values> batches() const {
    const std::lock_guard<std::mutex> guard(lock_);
    return batches_;
  }
  int most_at_once() const {
    const std::lock_guard<std::mutex> guard(lock_);
    return most_at_once_;
  }

  Outputs run(std::shared_ptr<const Batch> batch) override {
    const Values given = doubles(batch->inputs[0]);
    {
      const std::lock_guard<std::mutex> guard(lock_);
      batches_.push_back(given);
      most_at_once_ = std::max(most_at_once_, ++running_);
    }
    const int ticket = gate_.ticket();
    entered.release();
    const bool told = gate_.pass(ticket);
    const std::lock_guard<std::mutex> guard(lock_);
    --running_;
    if (!told) throw RunFailed("nobody released the model");
    return answer(*batch, given);
  }

  Semaphore entered;

 protected:
  virtual Outputs answer(const Batch& batch, Values values) {
    for (double& value : values) {
      if (value == 13) throw RunFailed("unlucky");
      value *= 2;
    }
    const auto width = batch.layout->inputs[0].shape[0];
    return {{tensor_of("y", {batch.rows, width}, values)}, {}};
  }

 private:
  Gate gate_;
  mutable std::mutex lock_;
  std::vector<Values> batches_;
  int running_ = 0;
  int most_at_once_ = 0;
};

// A request of some values, and what came of it. Cancel it by the batcher that it was submitted to.
class Asked : public Request {
 public:
  explicit Asked(Values given, std::int64_t width = 1) : values(std::move(given)) {
    layout = layout_of(width);
    rows = static_cast<std::int64_t>(values.size()) / width;
    inputs = {reinterpret_cast<const std::byte*>(values.data())};
    arrived = now();
  }

  bool claim() override { return !claimed_.exchange(true); }
  bool settled() const override { return claimed_.load(); }
  void complete(Outcome outcome) override {
    if (on_complete) on_complete();
    const std::lock_guard<std::mutex> guard(lock_);
    outcomes_.push_back(std::move(outcome));
    told_.notify_all();
  }
  void cancel(Batcher& batcher) {
    if (!claim()) return;
    batcher.withdraw(*this);
    complete(Refusal{Code::cancelled, Reason::cancelled, "the request was cancelled"});
  }

  std::vector<Outcome> outcomes() const {
    const std::lock_guard<std::mutex> guard(lock_);
    return outcomes_;
  }
  Outcome outcome() const {
    std::unique_lock<std::mutex> guard(lock_);
    const std::chrono::duration<double> most(kPatience);
    REQUIRE(told_.wait_for(guard, most, [&] { return !outcomes_.empty(); }));
    return outcomes_[0];
  }
  Answer answer() const {
    const Outcome told = outcome();
    REQUIRE(std::holds_alternative<Answer>(told));
    return std::get<Answer>(told);
  }
  Refusal refusal() const {
    const Outcome told = outcome();
    REQUIRE(std::holds_alternative<Refusal>(told));
    return std::get<Refusal>(told);
  }
  Values doubled() const { return own_rows(answer(), 0); }

  // The answer's rows of one of the outputs.
  static Values own_rows(const Answer& answer, std::size_t output) {
    const Tensor& tensor = answer.outputs->tensors[output];
    const Values all = doubles(tensor.data);
    const auto width = static_cast<std::int64_t>(tensor.row_bytes() / sizeof(double));
    return {all.begin() + answer.first * width, all.begin() + (answer.first + answer.rows) * width};
  }

  const Values values;
  std::function<void()> on_complete;

 private:
  std::atomic<bool> claimed_{false};
  mutable std::mutex lock_;
  mutable std::condition_variable told_;
  std::vector<Outcome> outcomes_;
};

using AskedPtr = std::shared_ptr<Asked>;

inline AskedPtr make_request(Values values, std::int64_t width = 1) {
  return std::make_shared<Asked>(std::move(values), width);
}

}  // namespace lane
