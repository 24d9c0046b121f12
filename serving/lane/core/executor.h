// Executor: who runs a batch. The lane's core knows no Python: tests run one that computes itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "layout.h"
#include "outcome.h"

namespace lane {

// Memory that is kept as long as somebody has this.
struct Bytes {
  std::shared_ptr<std::byte[]> data;
  std::size_t size = 0;

  std::byte* begin() const { return data.get(); }
  std::byte* end() const { return data.get() + size; }
};

// The stacked inputs of a batch; an executor may keep it for longer than the run.
struct Batch {
  LayoutPtr layout;
  std::int64_t rows = 0;      // with those added to fill a bucket
  std::vector<Bytes> inputs;  // rows * row bytes each, in the layout's order
};

class Executor {
 public:
  virtual ~Executor() = default;
  // Where the inputs of so many rows are to be stacked, in the layout's order: memory that nobody
  // else writes to while any of it is kept. Empty for no such wish: the batch has its own then.
  virtual std::vector<Bytes> buffers(const Layout& layout, std::int64_t rows) {
    (void)layout, (void)rows;
    return {};
  }
  // The outputs of all rows. Throws RunFailed. Of as many threads at once as there are instances.
  virtual Outputs run(std::shared_ptr<const Batch> batch) = 0;
};

}  // namespace lane
