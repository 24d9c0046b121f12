// PythonObserver: tells functions of Python what a batcher does. For servers that count in Python;
// one that counts natively gives an observer of its own.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "batcher.h"
#include "interpreter.h"

namespace lane {

class PythonObserver : public BatchObserver {
 public:
  // Of a thread that holds Python's lock; None is told nothing. None of them may raise.
  PythonObserver(pybind11::object observe, pybind11::object waiting, pybind11::object failed);

  void ran(const Execution& execution) override;
  void waiting(std::size_t requests) override;
  void failed(const std::string& warning) override;

 private:
  struct References {
    pybind11::object observe;  // (rows, request_rows, queue_seconds, request_seconds, *stages)
    pybind11::object waiting;  // (requests)
    pybind11::object failed;   // (warning)
  };
  template <typename... Arguments>
  void tell(pybind11::object References::*who, const Arguments&... arguments);

  OfPython<References> python_;
};

}  // namespace lane
