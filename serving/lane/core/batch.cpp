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
  auto batch = stack(executor, requests, size);
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

// Not zeros, as all of it is to be written over.
std::vector<Bytes> own_buffers(const Layout& layout, std::int64_t rows) {
  std::vector<Bytes> buffers;
  buffers.reserve(layout.inputs.size());
  for (const RowSpec& spec : layout.inputs) {
    const std::size_t size = static_cast<std::size_t>(rows) * spec.bytes;
    buffers.push_back({std::shared_ptr<std::byte[]>(new std::byte[size]), size});
  }
  return buffers;
}

std::shared_ptr<const Batch> stack(Executor& executor, const std::vector<RequestPtr>& requests,
                                   std::int64_t rows) {
  auto batch = std::make_shared<Batch>();
  batch->layout = requests.front()->layout;
  batch->rows = rows;
  batch->inputs = executor.buffers(*batch->layout, rows);
  if (batch->inputs.empty()) batch->inputs = own_buffers(*batch->layout, rows);
  for (std::size_t index = 0; index < batch->inputs.size(); ++index) {
    const std::size_t row_bytes = batch->layout->inputs[index].bytes;
    std::byte* to = batch->inputs[index].begin();
    for (const auto& request : requests) {
      const std::size_t bytes = static_cast<std::size_t>(request->rows) * row_bytes;
      to = std::copy_n(request->inputs.at(index), bytes, to);
    }
    std::fill(to, batch->inputs[index].end(), std::byte{0});
  }
  return batch;
}

}  // namespace lane
