// What a run says of each row: class, confidence, ink.
//
// The same as serving/predictions.py, to the last bit where a client or a count can see it: tests
// compare both.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "executor.h"
#include "outcome.h"
#include "prediction_ids.h"

namespace lane {

// Where a model's class, its scores and its image are: names. serving/predictions.py decides.
struct PredictionPlan {
  std::string class_output;  // integers (N,), or scores (N, C), whose highest is the class
  std::string score_output;  // (N, C); empty for none
  std::string image_input;   // UINT8; empty for none
  double temperature = 1.0;
};

// Runs a batch by another executor, and adds the facts of each row.
class Predicting : public Executor {
 public:
  Predicting(std::shared_ptr<Executor> inner, PredictionPlan plan);
  std::vector<Bytes> buffers(const Layout& layout, std::int64_t rows) override;
  Outputs run(std::shared_ptr<const Batch> batch) override;

 private:
  std::shared_ptr<Executor> inner_;
  PredictionPlan plan_;
};

// One for each row of the class output. Throws RunFailed for outputs that are not as the plan says.
std::vector<Fact> facts(const PredictionPlan& plan, const Batch& batch, const Outputs& outputs);

}  // namespace lane
