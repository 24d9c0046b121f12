// PythonExecutor: runs a batch by a function of Python, from a dict of arrays to another.
//
// Python's lock is taken once for each batch.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "arrays.h"
#include "executor.h"
#include "input_buffers.h"
#include "interpreter.h"
#include "status.h"

namespace lane {

// A run that raised; who logs it finds Python's exception here.
struct PythonFailed : RunFailed {
  // Of a thread that holds Python's lock.
  PythonFailed(const std::string& told, pybind11::object raised)
      : RunFailed(told), error(of_python<pybind11::object>(std::move(raised))) {}

  std::shared_ptr<const pybind11::object> error;
};

class PythonExecutor : public Executor {
 public:
  // Of a thread that holds Python's lock.
  PythonExecutor(pybind11::object run, FactsColumn facts, InputBuffers buffers);
  // Does not enter Python.
  std::vector<Bytes> buffers(const Layout& layout, std::int64_t rows) override;
  // What Python raises is thrown as PythonFailed. The inputs are arrays over the batch,
  // which lives as long as one of them does.
  Outputs run(std::shared_ptr<const Batch> batch) override;

 private:
  struct References {
    pybind11::object run;
    FactsColumn facts;
  };
  OfPython<References> python_;
  const InputBuffers buffers_;
};

}  // namespace lane
