// Counters: slots of float64 in a mapped file that other processes read; serving/counters.py.
//
// The lane's records are its own: nobody else writes them, readers add up the records of a series.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "batcher.h"
#include "outcome.h"
#include "status.h"

namespace lane {

// The slots of one series; where there are none, nothing is counted.
struct Slots {
  double* values = nullptr;
  std::size_t count = 0;

  // Stores are whole: readers of other processes see one value or the other. Additions of several
  // threads are all counted, whoever else counts into the same slots.
  void set(std::size_t index, double value) const;
  void add(std::size_t index, double value) const;
};

// A histogram's slots: one for each of the ascending bounds, which belong to their buckets, one
// beyond, then the sum. serving/families.py.
struct Histogram {
  Slots slots;
  std::shared_ptr<const std::vector<double>> bounds;

  void observe(double value) const;
  // Its two halves, for who adds several values up first.
  void count(double value) const;
  void add(double sum) const;
};

// The series of one version; serving/model_metrics.py and serving/prediction_counts.py have the
// same under the same names.
struct ModelSeries {
  Slots answered, inferences, executions, request_bytes, response_bytes;
  Histogram request_rows, request_seconds, queue_seconds;
  Histogram compute_input, compute_infer, compute_output, batch_rows;
  Slots pending, busy, kept, last_inference;
  // Slots of (requests by code, rejected by reason).
  std::function<std::pair<Slots, Slots>(Code, Reason)> refusal;
  // Slots of the batches of so many rows. Both are asked when something is new, from any thread, by
  // a thread that holds no lock.
  std::function<Slots(std::int64_t rows)> batches;
  // By label, where there are few; then for drift.
  std::vector<Slots> predictions;
  Slots predicted;
  Histogram confidence, ink;
};

// Counts what one version does, of any number of threads. Two of them may have slots in common: a
// version that takes another's place under its number counts on where that does.
class ModelCounters {
 public:
  // Asks for the slots of all usual refusals, so that later nobody has to wait for who is asked.
  explicit ModelCounters(ModelSeries series);

  void executed(const Execution& execution);
  void waiting(std::size_t requests);  // a store: the batcher's lock is held
  void busy(int more);
  // Those answered of one batch together: message sizes, and what the model said of their rows.
  void replied(std::int64_t request_bytes, std::int64_t response_bytes);
  void predicted(const Fact* facts, std::int64_t count);
  void failed(const Refusal& refusal, Seconds seconds, std::int64_t request_bytes);

 private:
  void ran(const Execution& execution, const Slots& batch);
  void count_label(std::int64_t label);
  Slots batch_slots(std::int64_t rows);
  std::pair<Slots, Slots> refusal_slots(Code code, Reason reason);
  template <typename Key, typename Value, typename Ask>
  Value known(std::map<Key, Value>& values, const Key& key, const Ask& ask);

  const ModelSeries series_;
  std::mutex lock_;  // of what is below
  std::map<std::int64_t, Slots> batches_;
  std::map<std::pair<Code, Reason>, std::pair<Slots, Slots>> refusals_;
};

// Why a connection was ended for what its client did, or did not do; serving/native_models.py has
// the same order.
enum class Dropped { abuse, keepalive, handshake, stalled };

// Counts what becomes of connections, and of requests that were not received.
struct ConnectionSeries {
  Slots open;                    // now; the I/O thread's
  Slots turned_away;             // as there was no room for one more
  std::array<Slots, 4> drops;    // by `Dropped`
  Slots stalled;                 // requests that were reset as they did not go on

  void dropped(Dropped why) const { drops[static_cast<std::size_t>(why)].add(0, 1); }
};

// Counts requests that were refused before it was known which loaded model they are for, and those
// inside.
struct ServiceSeries {
  std::function<std::pair<Slots, Slots>(Code, Reason)> refusal;
  Slots request_bytes;
  Slots in_flight;
  ConnectionSeries connections;
};

}  // namespace lane
