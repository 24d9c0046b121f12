// Executor: who runs a batch. The lane's core knows no Python: tests run one that computes itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "layout.h"
#include "outcome.h"

namespace lane {

// The stacked inputs of a batch; an executor may keep it for longer than the run.
struct Batch {
  LayoutPtr layout;
  std::int64_t rows = 0;                        // with those added to fill a bucket
  std::vector<std::vector<std::byte>> inputs;  // rows * row bytes each, in the layout's order
};

class Executor {
 public:
  virtual ~Executor() = default;
  // The outputs of all rows. Throws RunFailed. Of as many threads at once as there are instances.
  virtual Outputs run(std::shared_ptr<const Batch> batch) = 0;
};

}  // namespace lane
