// PythonBatcher: the lane's batcher as Python has it, `native.Batcher`.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <string>
#include <vector>

#include "batcher.h"
#include "python_request.h"

namespace lane {

class PythonBatcher {
 public:
  // `inputs` are a model's in its order; Layouts tells more.
  PythonBatcher(std::shared_ptr<Executor> executor, BatcherOptions options,
                std::shared_ptr<BatchObserver> observer, std::shared_ptr<Tell> tell,
                std::vector<std::string> inputs);
  PythonBatcher(const PythonBatcher&) = delete;
  PythonBatcher& operator=(const PythonBatcher&) = delete;

  // All of them with Python's lock held. What may take a while lets it go; `submit` does not, as to
  // get it back takes long when others want it: who holds the batcher's lock never waits for
  // Python's.
  // A refusal as `plain` has it, or None.
  pybind11::object submit(const pybind11::object& request);
  bool close(Seconds timeout);
  std::size_t pending() const;

  // For a server that submits to it, too.
  const std::shared_ptr<Batcher>& batcher() const { return batcher_; }

 private:
  std::shared_ptr<Tell> tell_;
  Layouts layouts_;
  std::shared_ptr<Batcher> batcher_;
};

}  // namespace lane
