// PythonObserver: tells functions of Python what a batcher does, but not who waits: that is told
// under the batcher's lock. A server that counts natively gives an observer of its own. HandingOut
// is around either.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <memory>
#include <string>
#include <utility>

#include "batcher.h"
#include "interpreter.h"

namespace lane {

class PythonObserver : public BatchObserver {
 public:
  // Of a thread that holds Python's lock; None is told nothing. None of them may raise.
  PythonObserver(pybind11::object observe, pybind11::object failed);

  void ran(const Execution& execution) override;
  void failed(const std::string& warning) override;

 private:
  struct References {
    pybind11::object observe;  // (rows, request_rows, queue_seconds, request_seconds, *stages)
    pybind11::object failed;   // (warning)
  };
  template <typename... Arguments>
  void tell(pybind11::object References::*who, const Arguments&... arguments);

  OfPython<References> python_;
};

// Tells another all, and Python's requests their outcomes when a run's are all there.
class HandingOut : public BatchObserver {
 public:
  explicit HandingOut(std::shared_ptr<BatchObserver> inner) : inner_(std::move(inner)) {}

  void ran(const Execution& execution) override { inner_->ran(execution); }
  void waiting(std::size_t requests) override { inner_->waiting(requests); }
  void busy(int more) override { inner_->busy(more); }
  void handed_out() override;
  void failed(const std::string& warning) override { inner_->failed(warning); }

 private:
  std::shared_ptr<BatchObserver> inner_;
};

}  // namespace lane
