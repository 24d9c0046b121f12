// InputBuffers: sets that are lent by a flag each, and taken back by whoever lets go of them last.
#include "input_buffers.h"

#include <utility>

namespace lane {

InputBuffers::InputBuffers(std::vector<Set> sets) {
  for (Set& set : sets) sets_.push_back(std::make_shared<Lendable>(std::move(set)));
}

std::vector<Bytes> InputBuffers::lend(const Layout& layout, std::int64_t rows) const {
  std::vector<Bytes> buffers;
  for (const auto& each : sets_) {
    const Set& set = each->set;
    if (rows > set.rows || !(layout == set.layout) || each->lent.exchange(true)) continue;
    const std::shared_ptr<void> loan(nullptr, [each](void*) { each->lent = false; });
    for (std::size_t i = 0; i < set.inputs.size(); ++i) {
      const std::size_t size = static_cast<std::size_t>(rows) * layout.inputs[i].bytes;
      buffers.push_back({std::shared_ptr<std::byte[]>(loan, set.inputs[i]), size});
    }
    break;
  }
  return buffers;
}

}  // namespace lane
