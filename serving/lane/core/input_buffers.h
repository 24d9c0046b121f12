// InputBuffers: memory of an executor's own for the inputs of batches, such as what a GPU reads by
// itself. It decides who has it; what it is and how long it lives is its owner's.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "executor.h"
#include "layout.h"

namespace lane {

class InputBuffers {
 public:
  // For one batch at a time: a set for each instance, and every batch finds one.
  struct Set {
    Layout layout;
    std::int64_t rows = 0;  // that there is room for
    std::vector<std::byte*> inputs;  // in the layout's order
    std::shared_ptr<const void> owner;
  };

  explicit InputBuffers(std::vector<Set> sets);
  // The first rows of a free set, which is free again once nobody keeps any of it. Empty where none
  // is free, or has such rows or so many. Of any thread.
  std::vector<Bytes> lend(const Layout& layout, std::int64_t rows) const;

 private:
  struct Lendable {
    explicit Lendable(Set given) : set(std::move(given)) {}
    const Set set;
    std::atomic<bool> lent{false};
  };

  std::vector<std::shared_ptr<Lendable>> sets_;
};

}  // namespace lane
