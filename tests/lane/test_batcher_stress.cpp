// Whatever arrives, and however it ends: each request gets its own answer or one refusal. As
// tests/test_batcher_properties.py has it; the plans come from seeds.
#include <doctest/doctest.h>

#include <random>
#include <thread>

#include "batching.h"

namespace lane {
namespace {

constexpr Seconds kNever = std::numeric_limits<Seconds>::infinity();
constexpr int kSenders = 3;
constexpr Seconds kAtMost = 3;  // for all rounds together

// Two linear classes, of weights 1 and -1, for rows of any width. Fails where a row is poisoned.
class Linear : public Executor {
 public:
  Outputs run(std::shared_ptr<const Batch> batch) override {
    raise(most_at_once, ++running_);
    raise(largest, static_cast<int>(batch->rows));
    const Values given = doubles(batch->inputs[0]);
    const auto width = batch->layout->inputs[0].shape[0];
    Values scores, labels;
    bool poisoned = false;
    for (std::int64_t row = 0; row < batch->rows; ++row) {
      double sum = 0;
      for (std::int64_t column = 0; column < width; ++column) {
        sum += given[static_cast<std::size_t>(row * width + column)];
      }
      poisoned |= sum < 0;
      scores.insert(scores.end(), {sum, -sum});
      labels.push_back(sum > 0 ? 0 : 1);
    }
    --running_;
    if (poisoned) throw RunFailed("poisoned");
    Outputs outputs;
    outputs.tensors.push_back(tensor_of("scores", {batch->rows, 2}, scores));
    outputs.tensors.push_back(tensor_of("labels", {batch->rows}, labels));
    return outputs;
  }

  std::atomic<int> most_at_once{0}, largest{0};

 private:
  static void raise(std::atomic<int>& most, int value) {
    for (int known = most; known < value && !most.compare_exchange_weak(known, value);) {
    }
  }

  std::atomic<int> running_{0};
};

// Counts what must add up.
class Tally : public BatchObserver {
 public:
  void ran(const Execution& execution) override {
    answered += static_cast<int>(execution.request_rows.size());
  }
  void waiting(std::size_t count) override { waiting_now = count; }
  void busy(int more) override { busy_now += more; }

  std::atomic<int> answered{0}, busy_now{0};
  std::atomic<std::size_t> waiting_now{0};
};

// One request, and what happens to it.
struct Plan {
  AskedPtr request;
  bool poison = false;
  enum { no, before, after } cancelled = no;
  std::optional<Refusal> refusal;  // by `submit`
};

struct Round {
  explicit Round(unsigned seed) : random(seed) {
    options.max_batch_size = 1 + any(5);
    options.max_queue_delay = any(2) ? 0 : 0.001;
    options.max_queue_size = any(1) ? 2 : 1000;
    options.instance_count = 1 + any(2);
    options.priority_levels = 3;
    if (any(1)) options.buckets = {options.max_batch_size, 2};
    for (int number = 1; number <= 60; ++number) plans.push_back(plan(number));
  }
  int any(int most) { return std::uniform_int_distribution<int>(0, most)(random); }
  bool once_in(int times) { return any(times - 1) == 0; }

  // Each row has a number of its own in all its columns, below 0 for poison.
  Plan plan(int number) {
    Plan plan;
    const auto rows = static_cast<std::size_t>(1 + any(4));
    const auto width = static_cast<std::size_t>(1 + any(3) / 3);
    plan.poison = once_in(8);
    Values values;
    for (std::size_t row = 0; row < rows; ++row) {
      const double value = 10 * number + static_cast<double>(row);
      values.insert(values.end(), width, plan.poison ? -value : value);
    }
    plan.request = make_request(values, static_cast<std::int64_t>(width));
    plan.request->priority = any(2);
    plan.request->background = once_in(5);
    const Seconds seconds[] = {kNever, kNever, kNever, kNever, kPatience, 0.0005, -1};
    plan.request->deadline = now() + seconds[any(6)];
    plan.cancelled = once_in(6) ? Plan::before : once_in(5) ? Plan::after : Plan::no;
    return plan;
  }

  void send(Batcher& batcher, Plan& plan) {
    if (plan.cancelled == Plan::before) plan.request->cancel(batcher);
    const bool quietly = plan.request->values[0] > 300;
    plan.refusal = batcher.submit(plan.request, !quietly);
    if (quietly) batcher.wake();
    if (plan.refusal && plan.cancelled == Plan::before) plan.refusal.reset();
    else if (plan.cancelled == Plan::after && !plan.refusal) plan.request->cancel(batcher);
  }

  std::mt19937 random;
  BatcherOptions options;
  std::vector<Plan> plans;
};

// What a request must be answered.
void check_answer(const Plan& plan, const Answer& answer) {
  const Asked& request = *plan.request;
  const auto width = request.values.size() / static_cast<std::size_t>(request.rows);
  Values scores;
  for (std::size_t row = 0; row < request.values.size(); row += width) {
    const double sum = request.values[row] * static_cast<double>(width);
    scores.insert(scores.end(), {sum, -sum});
  }
  CHECK_FALSE(plan.poison);
  CHECK(Asked::own_rows(answer, 0) == scores);
  CHECK(Asked::own_rows(answer, 1) == Values(static_cast<std::size_t>(request.rows), 0));
  CHECK(answer.queue_seconds >= 0);
  CHECK(answer.request_seconds >= answer.queue_seconds);
}

// Whether the refusal may come of that plan.
bool may_be(const Plan& plan, const Refusal& refusal, const BatcherOptions& options) {
  switch (refusal.reason) {
    case Reason::cancelled: return plan.cancelled != Plan::no;
    case Reason::deadline: return plan.request->deadline < now();
    case Reason::failed: return plan.poison;
    case Reason::queue_full: return options.max_queue_size == 2;
    case Reason::invalid_input: return plan.request->rows > options.max_batch_size;
    case Reason::model_not_ready: return refusal.closed;
    default: return false;
  }
}

void check(const Plan& plan, const BatcherOptions& options) {
  const auto outcomes = plan.request->outcomes();
  REQUIRE(outcomes.size() + plan.refusal.has_value() == 1);
  const Outcome outcome = plan.refusal ? Outcome(*plan.refusal) : outcomes[0];
  if (const auto* answer = std::get_if<Answer>(&outcome)) {
    check_answer(plan, *answer);
  } else {
    CHECK(may_be(plan, std::get<Refusal>(outcome), options));
  }
}

void play(unsigned seed) {
  CAPTURE(seed);
  Round round(seed);
  const auto model = std::make_shared<Linear>();
  const auto tally = std::make_shared<Tally>();
  auto batcher = std::make_unique<Batcher>(model, round.options, tally);
  Semaphore sent;
  std::vector<std::thread> senders;
  for (std::size_t first = 0; first < kSenders; ++first) {
    senders.emplace_back([&, first] {
      for (std::size_t i = first; i < round.plans.size(); i += kSenders) {
        round.send(*batcher, round.plans[i]);
        sent.release();
      }
    });
  }
  const int close_after = round.any(2) ? static_cast<int>(round.plans.size()) : round.any(40);
  for (int count = 0; count < close_after; ++count) CHECK(sent.acquire());
  const Seconds timeout = round.any(2) ? kPatience : 0;
  CHECK((batcher->close(timeout) || timeout == 0));
  for (auto& sender : senders) sender.join();
  CHECK(batcher->pending() == 0);
  batcher.reset();

  int answered = 0;
  for (const auto& plan : round.plans) {
    check(plan, round.options);
    const auto outcomes = plan.request->outcomes();
    answered += !outcomes.empty() && std::holds_alternative<Answer>(outcomes[0]) &&
                !plan.request->background;
  }
  CHECK(tally->answered == answered);
  CHECK(tally->busy_now == 0);
  CHECK(tally->waiting_now == 0);
  CHECK(model->most_at_once <= round.options.instance_count);
  CHECK(model->largest <= round.options.max_batch_size);
}

TEST_CASE("every request gets exactly its own answer or one refusal") {
  const Seconds end = now() + kAtMost;
  unsigned seed = 0;
  for (; seed < 1000 && now() < end; ++seed) play(seed);
  MESSAGE(seed << " rounds");
}

}  // namespace
}  // namespace lane
