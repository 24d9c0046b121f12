// PythonBatcher: the lane's batcher as Python has it, `native.Batcher`.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "batcher.h"
#include "python_request.h"

namespace lane {

class PythonBatcher {
 public:
  PythonBatcher(std::shared_ptr<Executor> executor, BatcherOptions options,
                std::shared_ptr<BatchObserver> observer, bool waiting_is_python,
                std::shared_ptr<Tell> tell);
  ~PythonBatcher();
  PythonBatcher(const PythonBatcher&) = delete;
  PythonBatcher& operator=(const PythonBatcher&) = delete;

  // All of them with Python's lock held, which they let go while they need the batcher's: its holder
  // might want Python's. `submit` does so only where that can be, as to get it back takes long when
  // others want it: with a `waiting` of Python, which is called under the batcher's lock.
  // A refusal as `plain` has it, or None.
  pybind11::object submit(const pybind11::object& request);
  bool close(Seconds timeout);
  std::size_t pending() const;

  // For a server that submits to it, too.
  const std::shared_ptr<Batcher>& batcher() const { return batcher_; }

 private:
  const bool waiting_is_python_;
  std::shared_ptr<Tell> tell_;
  Layouts layouts_;
  std::shared_ptr<Batcher> batcher_;
};

}  // namespace lane
