// Counters: what one version does, added to slots as serving/model_metrics.py and
// serving/prediction_counts.py add it.
#include "counters.h"

#include <time.h>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace lane {
namespace {

// What can happen to a request for a loaded model: serving/model_metrics.py's _OF_A_MODEL.
constexpr std::pair<Code, Reason> kUsual[] = {
    {Code::resource_exhausted, Reason::queue_full}, {Code::invalid_argument, Reason::invalid_input},
    {Code::deadline_exceeded, Reason::deadline},    {Code::cancelled, Reason::cancelled},
    {Code::internal, Reason::failed},
};

double milliseconds_since_1970() {
  timespec time;
  clock_gettime(CLOCK_REALTIME, &time);
  return static_cast<double>(std::int64_t{time.tv_sec} * 1000 + time.tv_nsec / 1'000'000);
}

// The bucket, for each of the values, then the sum once.
template <typename Value>
void observe_all(const Histogram& histogram, const std::vector<Value>& values) {
  for (const Value value : values) histogram.count(static_cast<double>(value));
  histogram.add(static_cast<double>(std::accumulate(values.begin(), values.end(), Value{})));
}

}  // namespace

void Slots::set(std::size_t index, double value) const {
  if (index < count) __atomic_store(values + index, &value, __ATOMIC_RELAXED);
}

void Slots::add(std::size_t index, double value) const {
  if (index >= count || value == 0) return;
  double before;
  __atomic_load(values + index, &before, __ATOMIC_RELAXED);
  double sum = before + value;
  while (!__atomic_compare_exchange(values + index, &before, &sum, true, __ATOMIC_RELAXED,
                                    __ATOMIC_RELAXED)) {
    sum = before + value;
  }
}

void Histogram::observe(double value) const {
  count(value);
  add(value);
}

void Histogram::count(double value) const {
  if (!bounds) return;
  const auto bucket = std::lower_bound(bounds->begin(), bounds->end(), value);
  slots.add(static_cast<std::size_t>(bucket - bounds->begin()), 1);
}

void Histogram::add(double sum) const {
  if (slots.count) slots.add(slots.count - 1, sum);
}

ModelCounters::ModelCounters(ModelSeries series) : series_(std::move(series)) {
  for (const auto& [code, reason] : kUsual) refusal_slots(code, reason);
}

void ModelCounters::executed(const Execution& execution) {
  const Slots batch = batch_slots(execution.rows);
  series_.executions.add(0, 1);
  series_.inferences.add(0, static_cast<double>(execution.rows));
  series_.batch_rows.observe(static_cast<double>(execution.rows));
  ran(execution, batch);
  observe_all(series_.request_rows, execution.request_rows);
  observe_all(series_.queue_seconds, execution.queue_seconds);
  observe_all(series_.request_seconds, execution.request_seconds);
  series_.answered.add(0, static_cast<double>(execution.queue_seconds.size()));
  series_.last_inference.set(0, milliseconds_since_1970());
}

// The three stages: in their histograms, per batch size, and once for each request.
void ModelCounters::ran(const Execution& execution, const Slots& batch) {
  const Histogram* const histograms[] = {&series_.compute_input, &series_.compute_infer,
                                         &series_.compute_output};
  const Stages& stages = execution.stages;
  const Seconds seconds[] = {stages.compute_input, stages.compute_infer, stages.compute_output};
  batch.add(0, 1);
  for (std::size_t stage = 0; stage < 3; ++stage) {
    histograms[stage]->observe(seconds[stage]);
    batch.add(1 + stage, seconds[stage]);
    const auto requests = static_cast<double>(execution.queue_seconds.size());
    series_.kept.add(stage, requests * seconds[stage]);
  }
}

void ModelCounters::waiting(std::size_t requests) {
  series_.pending.set(0, static_cast<double>(requests));
}

void ModelCounters::busy(int more) { series_.busy.add(0, more); }

void ModelCounters::replied(std::int64_t request_bytes, std::int64_t response_bytes) {
  series_.request_bytes.add(0, static_cast<double>(request_bytes));
  series_.response_bytes.add(0, static_cast<double>(response_bytes));
}

void ModelCounters::predicted(const Fact* facts, std::int64_t count) {
  double confidences = 0;
  double inks = 0;
  for (const Fact* fact = facts; fact != facts + count; ++fact) {
    count_label(fact->label);
    if (!std::isnan(fact->calibrated)) {
      series_.confidence.count(fact->calibrated);
      confidences += fact->calibrated;
    }
    if (!std::isnan(fact->ink)) {
      series_.ink.count(fact->ink);
      inks += fact->ink;
    }
  }
  series_.confidence.add(confidences);
  series_.ink.add(inks);
}

void ModelCounters::count_label(std::int64_t label) {
  if (label < 0 || static_cast<std::size_t>(label) >= series_.predictions.size()) return;
  const auto index = static_cast<std::size_t>(label);
  series_.predictions[index].add(0, 1);
  series_.predicted.add(index, 1);
}

void ModelCounters::failed(const Refusal& refusal, Seconds seconds, std::int64_t request_bytes) {
  const auto [requests, rejected] = refusal_slots(refusal.code, refusal.reason);
  requests.add(0, 1);
  rejected.add(0, 1);
  series_.request_bytes.add(0, static_cast<double>(request_bytes));
  series_.kept.add(3, seconds);
}

Slots ModelCounters::batch_slots(std::int64_t rows) {
  return known(batches_, rows, [&] { return series_.batches ? series_.batches(rows) : Slots{}; });
}

std::pair<Slots, Slots> ModelCounters::refusal_slots(Code code, Reason reason) {
  return known(refusals_, std::make_pair(code, reason), [&] {
    return series_.refusal ? series_.refusal(code, reason) : std::pair<Slots, Slots>{};
  });
}

// What is known by the key, or else what `ask` says. It is asked without the lock: it may be
// Python, whose own lock may be held by who waits for this one. Two that ask at once may be told
// different slots, which readers add up.
template <typename Key, typename Value, typename Ask>
Value ModelCounters::known(std::map<Key, Value>& values, const Key& key, const Ask& ask) {
  {
    const std::lock_guard<std::mutex> guard(lock_);
    if (const auto found = values.find(key); found != values.end()) return found->second;
  }
  const Value value = ask();
  const std::lock_guard<std::mutex> guard(lock_);
  return values.emplace(key, value).first->second;
}

}  // namespace lane
