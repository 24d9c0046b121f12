// What a run says of each row: class, confidence, ink; and the ids that are signed over it.
//
// The same as serving/predictions.py and serving/prediction_ids.py, to the last bit where a client
// or a count can see it: tests compare both.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "executor.h"
#include "outcome.h"

namespace lane {

// Where a model's class, its scores and its image are; indices, -1 where there is none.
struct PredictionPlan {
  std::string class_output;  // its name
  std::string score_output;  // empty for none
  std::string image_input;   // empty for none
  double temperature = 1.0;
};

// Runs a batch by another executor, and adds the facts of each row.
class Predicting : public Executor {
 public:
  Predicting(std::shared_ptr<Executor> inner, PredictionPlan plan);
  Outputs run(std::shared_ptr<const Batch> batch) override;

 private:
  std::shared_ptr<Executor> inner_;
  PredictionPlan plan_;
};

std::vector<Fact> facts(const PredictionPlan& plan, const Batch& batch, const Outputs& outputs);

// Makes prediction ids, of any number of threads.
class Signer {
 public:
  explicit Signer(std::string key);
  ~Signer();
  // An id for each of `count` facts, joined by commas; empty for a label that is none of `classes`.
  std::string ids(const std::string& model, const std::string& version, std::int64_t classes,
                  const Fact* facts, std::int64_t count) const;

 private:
  struct Keyed;
  std::unique_ptr<Keyed> keyed_;
  mutable std::atomic<std::uint64_t> next_;
};

}  // namespace lane
