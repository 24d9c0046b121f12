// A batch of requests run, timed and checked: the native half of serving/batch.py.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "executor.h"
#include "outcome.h"
#include "request.h"

namespace lane {

struct BatchRun {
  std::shared_ptr<const Outputs> outputs;
  Seconds started = 0;
  Seconds done = 0;
  Stages stages;
};

// One run of all; throws what the executor does, or RunFailed where it gives another number of rows
// than it got. `buckets` are ascending.
BatchRun run_batch(Executor& executor, const std::vector<RequestPtr>& requests,
                   const std::vector<std::int64_t>& buckets);

// Rows of the smallest bucket that holds so many; as many where none does.
std::int64_t padded(std::int64_t rows, const std::vector<std::int64_t>& buckets);

// New memory for so many rows, in the layout's order.
std::vector<Bytes> own_buffers(const Layout& layout, std::int64_t rows);

// The inputs of all, one below the other, then zeros up to `rows`: in the executor's buffers where
// it has some.
std::shared_ptr<const Batch> stack(Executor& executor, const std::vector<RequestPtr>& requests,
                                   std::int64_t rows);

}  // namespace lane
