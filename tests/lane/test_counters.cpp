// What is counted of batches, answers and refusals, slot by slot.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <mutex>
#include <thread>

#include "counters.h"

namespace lane {
namespace {

using Doubles = std::vector<double>;

const auto kBounds = std::make_shared<const Doubles>(Doubles{1, 2, 4});
const double kNaN = std::numeric_limits<double>::quiet_NaN();

// A model's series in memory; histograms have the bounds above.
struct Counted {
  Doubles answered = Doubles(1), inferences = Doubles(1), executions = Doubles(1);
  Doubles request_bytes = Doubles(1), response_bytes = Doubles(1);
  Doubles pending = Doubles(1), busy = Doubles(1), kept = Doubles(4), last_inference = Doubles(1);
  Doubles request_rows = Doubles(5), request_seconds = Doubles(5), queue_seconds = Doubles(5);
  Doubles input = Doubles(5), infer = Doubles(5), output = Doubles(5), batch_rows = Doubles(5);
  Doubles requests = Doubles(1), rejected = Doubles(1), batch = Doubles(4);
  Doubles zero = Doubles(1), one = Doubles(1), predicted = Doubles(100);
  Doubles confidence = Doubles(5), ink = Doubles(5);
  std::mutex lock;  // series are asked for by several threads at once
  std::vector<std::int64_t> asked_rows;
  std::vector<std::pair<Code, Reason>> asked_refusals;

  static Slots of(Doubles& values) { return {values.data(), values.size()}; }
  static Histogram histogram(Doubles& values) { return {of(values), kBounds}; }

  ModelSeries series() {
    ModelSeries series;
    series.answered = of(answered);
    series.inferences = of(inferences);
    series.executions = of(executions);
    series.request_bytes = of(request_bytes);
    series.response_bytes = of(response_bytes);
    series.request_rows = histogram(request_rows);
    series.request_seconds = histogram(request_seconds);
    series.queue_seconds = histogram(queue_seconds);
    series.compute_input = histogram(input);
    series.compute_infer = histogram(infer);
    series.compute_output = histogram(output);
    series.batch_rows = histogram(batch_rows);
    series.pending = of(pending);
    series.busy = of(busy);
    series.kept = of(kept);
    series.last_inference = of(last_inference);
    series.refusal = [this](Code code, Reason reason) {
      const std::lock_guard<std::mutex> guard(lock);
      asked_refusals.emplace_back(code, reason);
      return std::make_pair(of(requests), of(rejected));
    };
    series.batches = [this](std::int64_t rows) {
      const std::lock_guard<std::mutex> guard(lock);
      asked_rows.push_back(rows);
      return of(batch);
    };
    series.predictions = {of(zero), of(one)};
    series.predicted = of(predicted);
    series.confidence = histogram(confidence);
    series.ink = histogram(ink);
    return series;
  }
};

TEST_CASE("a bound belongs to its bucket, and what is beyond the last has one of its own") {
  Doubles slots(5);
  const Histogram histogram{{slots.data(), slots.size()}, kBounds};
  for (const double value : {0.5, 1.0, 1.5, 4.0, 4.5}) histogram.observe(value);
  CHECK(slots == Doubles{2, 1, 1, 1, 11.5});
}

TEST_CASE("a batch counts once, its stages also once for each of its requests") {
  Counted counted;
  ModelCounters counters(counted.series());
  const Execution execution{5, {1, 4}, {0.5, 2.5}, {3, 3}, {6, 0.25, 1, 8}};
  counters.executed(execution);
  counters.executed(execution);
  CHECK(counted.executions == Doubles{2});
  CHECK(counted.inferences == Doubles{10});
  CHECK(counted.answered == Doubles{4});
  CHECK(counted.batch_rows == Doubles{0, 0, 0, 2, 10});
  CHECK(counted.request_rows == Doubles{2, 0, 2, 0, 10});
  CHECK(counted.queue_seconds == Doubles{2, 0, 2, 0, 6});
  CHECK(counted.request_seconds == Doubles{0, 0, 4, 0, 12});
  CHECK(counted.input == Doubles{2, 0, 0, 0, 0.5});
  CHECK(counted.infer == Doubles{2, 0, 0, 0, 2});
  CHECK(counted.output == Doubles{0, 0, 0, 2, 16});
  CHECK(counted.batch == Doubles{2, 0.5, 2, 16});
  CHECK(counted.kept == Doubles{1, 4, 32, 0});
  CHECK(counted.asked_rows == std::vector<std::int64_t>{5});
  CHECK(counted.last_inference[0] > 1.7e12);  // milliseconds, after 2023
  CHECK(counted.last_inference[0] == std::floor(counted.last_inference[0]));
}

TEST_CASE("a refusal counts by code and reason, with its bytes and what it took") {
  Counted counted;
  ModelCounters counters(counted.series());
  counters.failed(invalid_input("no"), 0.5, 100);
  counters.failed(invalid_input("no"), 0.25, 10);
  CHECK(counted.requests == Doubles{2});
  CHECK(counted.rejected == Doubles{2});
  CHECK(counted.request_bytes == Doubles{110});
  CHECK(counted.kept == Doubles{0, 0, 0, 0.75});
  // Usual ones are asked for at the start: on the thread that moves bytes nobody waits for Python.
  const std::vector<std::pair<Code, Reason>> usual{
      {Code::resource_exhausted, Reason::queue_full},
      {Code::invalid_argument, Reason::invalid_input},
      {Code::deadline_exceeded, Reason::deadline},
      {Code::cancelled, Reason::cancelled},
      {Code::internal, Reason::failed},
  };
  CHECK((counted.asked_refusals == usual));
  counters.failed({Code::unavailable, Reason::model_not_ready, ""}, 0, 0);
  CHECK(counted.asked_refusals.size() == usual.size() + 1);
}

TEST_CASE("answers count their messages' sizes; waiting is set and busy is added to") {
  Counted counted;
  ModelCounters counters(counted.series());
  counters.replied(1000, 50);
  counters.replied(500, 25);
  counters.waiting(7);
  counters.waiting(3);
  counters.busy(1);
  counters.busy(1);
  counters.busy(-1);
  CHECK(counted.request_bytes == Doubles{1500});
  CHECK(counted.response_bytes == Doubles{75});
  CHECK(counted.pending == Doubles{3});
  CHECK(counted.busy == Doubles{1});
}

TEST_CASE("predictions count by label, calibrated confidence and ink, each where there is one") {
  Counted counted;
  ModelCounters counters(counted.series());
  const Fact facts[] = {
      {0, 9, 0.5, 3}, {1, 9, kNaN, 0.5}, {1, 9, 2, kNaN}, {2, 9, 5, 5}, {-1, 9, 1, 1}};
  counters.predicted(facts, 5);
  CHECK(counted.zero == Doubles{1});
  CHECK(counted.one == Doubles{2});
  CHECK(counted.predicted[0] == 1);
  CHECK(counted.predicted[1] == 2);
  CHECK(counted.predicted[2] == 0);  // none of the model's labels
  CHECK(counted.confidence == Doubles{2, 1, 0, 1, 8.5});
  CHECK(counted.ink == Doubles{2, 0, 1, 1, 9.5});
}

TEST_CASE("without slots nothing is counted") {
  ModelCounters counters(ModelSeries{});
  const Fact fact{0, 1, 1, 1};
  counters.executed(Execution{1, {1}, {0}, {0}, {}});
  counters.waiting(1);
  counters.busy(1);
  counters.replied(1, 1);
  counters.predicted(&fact, 1);
  counters.failed(invalid_input("no"), 1, 1);
  const Slots none;
  none.add(3, 1);
  CHECK(none.count == 0);
}

TEST_CASE("two versions that count into the same slots at once lose nothing") {
  Counted counted;
  ModelCounters before(counted.series()), after(counted.series());
  const auto count = [](ModelCounters& counters) {
    for (int time = 0; time < 20000; ++time) {
      counters.replied(10, 1);
      counters.busy(1);
      counters.busy(-1);
    }
  };
  std::thread one([&] { count(before); }), other([&] { count(after); });
  one.join();
  other.join();
  CHECK(counted.request_bytes == Doubles{400000});
  CHECK(counted.response_bytes == Doubles{40000});
  CHECK(counted.busy == Doubles{0});
}

TEST_CASE("threads that count at once lose nothing, and a reader meanwhile sees whole values") {
  Counted counted;
  ModelCounters counters(counted.series());
  const auto count = [&] {
    for (int time = 0; time < 1000; ++time) {
      counters.executed(Execution{2, {1, 1}, {0, 0}, {0, 0}, {2, 1, 1, 1}});
      counters.failed(invalid_input("no"), 1, 10);
      counters.replied(10, 1);
    }
  };
  std::thread one(count), other(count);
  one.join();
  other.join();
  CHECK(counted.executions == Doubles{2000});
  CHECK(counted.answered == Doubles{4000});
  CHECK(counted.request_bytes == Doubles{40000});
  CHECK(counted.kept == Doubles{4000, 4000, 4000, 2000});
}

}  // namespace
}  // namespace lane
