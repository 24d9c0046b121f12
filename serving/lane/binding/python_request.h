// PythonRequest: a serving.batch.Request in the lane's queue.
//
// Python's Request says who may complete it, and so a cancellation there and a batch here agree.
#pragma once

#include <pybind11/pybind11.h>

#include <atomic>
#include <exception>
#include <memory>
#include <vector>

#include "arrays.h"
#include "interpreter.h"
#include "request.h"

namespace lane {

// How Python hears of outcomes: functions of serving/native_batcher.py.
struct Tell {
  pybind11::object answered;  // (complete, outputs, queue_seconds, request_seconds, *stages)
  pybind11::object refused;   // (complete, *refusal)
  FactsColumn facts;
};

// The exception that a run raised, or None; one that is as good where it was no function of Python.
pybind11::object cause_of(const std::exception_ptr& cause);

// (reason, details, retry_after, closed, cause) for Python.
pybind11::tuple plain(const Refusal& refusal);

// Layouts in use, so that equal ones are one. Python's lock guards it.
class Layouts {
 public:
  LayoutPtr shared(Layout layout);

 private:
  LayoutPtr newest_;
  std::vector<std::weak_ptr<const Layout>> others_;
};

class PythonRequest : public Request {
 public:
  // Of a thread that holds Python's lock. TypeError for an array that the lane does not carry.
  PythonRequest(const pybind11::object& request, Layouts& layouts, std::shared_ptr<Tell> tell);

  bool claim() override;
  bool settled() const override { return settled_.load(); }
  void complete(Outcome outcome) override;

  // Python has claimed it.
  void settle() { settled_.store(true); }

 private:
  struct References {
    pybind11::object request;
    pybind11::object complete;
    std::vector<pybind11::array> inputs;
  };
  void read_inputs(const pybind11::dict& inputs, Layouts& layouts);

  std::atomic<bool> settled_{false};
  std::shared_ptr<Tell> tell_;
  OfPython<References> python_;
};

}  // namespace lane
