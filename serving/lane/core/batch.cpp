// A batch: its rows copied together, the executor's run of them, and whether as many came out.
#include "batch.h"

#include <algorithm>
#include <string>
#include <utility>

namespace lane {
namespace {

// As Python writes a tuple.
std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text = "(";
  for (std::size_t index = 0; index < shape.size(); ++index) {
    text += (index ? ", " : "") + std::to_string(shape[index]);
  }
  return text + (shape.size() == 1 ? ",)" : ")");
}

void check_rows(const Outputs& outputs, std::int64_t rows) {
  for (const auto& tensor : outputs.tensors) {
    if (tensor.has_rows(rows)) continue;
    throw RunFailed("output '" + tensor.name + "' has shape " + shape_text(tensor.shape) +
                    ", expected " + std::to_string(rows) + " rows");
  }
}

std::int64_t rows_of(const std::vector<RequestPtr>& requests) {
  std::int64_t rows = 0;
  for (const auto& request : requests) rows += request->rows;
  return rows;
}

}  // namespace

BatchRun run_batch(Executor& executor, const std::vector<RequestPtr>& requests,
                   const std::vector<std::int64_t>& buckets) {
  BatchRun run;
  run.started = now();
  const std::int64_t rows = rows_of(requests);
  const std::int64_t size = padded(rows, buckets);
  auto batch = stack(requests, size);
  const Seconds stacked = now();
  run.outputs = std::make_shared<const Outputs>(executor.run(std::move(batch)));
  const Seconds ran = now();
  check_rows(*run.outputs, size);
  run.done = now();
  run.stages = {rows, stacked - run.started, ran - stacked, run.done - ran};
  return run;
}

std::int64_t padded(std::int64_t rows, const std::vector<std::int64_t>& buckets) {
  const auto bucket = std::lower_bound(buckets.begin(), buckets.end(), rows);
  return bucket == buckets.end() ? rows : *bucket;
}

std::shared_ptr<const Batch> stack(const std::vector<RequestPtr>& requests, std::int64_t rows) {
  auto batch = std::make_shared<Batch>();
  batch->layout = requests.front()->layout;
  batch->rows = rows;
  for (std::size_t index = 0; index < batch->layout->inputs.size(); ++index) {
    const std::size_t row_bytes = batch->layout->inputs[index].bytes;
    auto& stacked = batch->inputs.emplace_back();
    // Reserved and inserted: what is overwritten anyway need not be zeros first.
    stacked.reserve(static_cast<std::size_t>(rows) * row_bytes);
    for (const auto& request : requests) {
      const std::byte* from = request->inputs.at(index);
      const std::byte* to = from + static_cast<std::size_t>(request->rows) * row_bytes;
      stacked.insert(stacked.end(), from, to);
    }
    stacked.resize(static_cast<std::size_t>(rows) * row_bytes);
  }
  return batch;
}

}  // namespace lane
