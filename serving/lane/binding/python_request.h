// PythonRequest: a serving.batch.Request in the lane's queue.
//
// Who may complete it is one flag, which a cancellation in Python and a batch here ask: so a batch
// claims its requests without Python's lock, and takes that once to hand out all their outcomes.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <atomic>
#include <exception>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "arrays.h"
#include "batcher.h"
#include "interpreter.h"
#include "request.h"

namespace lane {

// How Python hears of outcomes: functions of serving/native_batcher.py.
struct Tell {
  pybind11::object answered;  // (complete, outputs, queue_seconds, request_seconds, *stages)
  pybind11::object refused;   // (complete, refusal), which is `plain`
  FactsColumn facts;
};

// The exception that a run raised, or None; one that is as good where it was no function of Python.
pybind11::object cause_of(const std::exception_ptr& cause);

// (reason, details, retry_after, closed, cause) for Python.
pybind11::tuple plain(const Refusal& refusal);

// Layouts in use, so that equal ones are one. Python's lock guards it.
class Layouts {
 public:
  // `inputs` names a model's inputs in its order, as the lane's own requests have them, so that
  // both share batches. Others come after them, by name.
  explicit Layouts(std::vector<std::string> inputs) : inputs_(std::move(inputs)) {}

  // The arrays by name, in this order.
  std::vector<std::pair<std::string, pybind11::array>> ordered(const pybind11::dict& arrays) const;
  LayoutPtr shared(Layout layout);

 private:
  const std::vector<std::string> inputs_;
  LayoutPtr newest_;
  std::vector<std::weak_ptr<const Layout>> others_;
};

class PythonRequest;

// Whether somebody has claimed a request: whoever sets it first has.
using Settled = std::shared_ptr<std::atomic<bool>>;

// The right to complete a request of Python, in the place of its list of one function; and what it
// calls when it is cancelled. It owns nothing of the request in the queue, or that would own
// itself.
// Python's lock guards it.
class Claim {
 public:
  // Takes the function out of the list, where it still has one.
  explicit Claim(pybind11::object list);

  pybind11::object pop();  // the function; IndexError where the request is settled
  bool left() const { return !settled_->load(); }
  void withdraw(const pybind11::object& request) const;

  void queued(std::weak_ptr<PythonRequest> request, std::weak_ptr<Batcher> batcher);
  const Settled& settled() const { return settled_; }
  // For who has claimed it.
  pybind11::object take_complete() { return std::move(complete_); }

 private:
  Settled settled_ = std::make_shared<std::atomic<bool>>(false);
  pybind11::object complete_;
  std::weak_ptr<PythonRequest> request_;
  std::weak_ptr<Batcher> batcher_;
};

class PythonRequest : public Request {
 public:
  // Of a thread that holds Python's lock. TypeError for an array that the lane does not carry.
  PythonRequest(const pybind11::object& request, Layouts& layouts, std::shared_ptr<Tell> tell);

  bool claim() override { return !settled_->exchange(true); }
  bool settled() const override { return settled_->load(); }
  // Python hears of it by `hand_out`.
  void complete(Outcome outcome) override;

 private:
  friend void hand_out();
  struct References {
    pybind11::object claim;
    std::vector<pybind11::array> inputs;
  };
  struct Completed {
    OfPython<References> python;
    std::shared_ptr<Tell> tell;
    Outcome outcome;
  };
  static std::vector<Completed>& completed();  // of this thread, still to be told
  void read_inputs(const pybind11::dict& inputs, Layouts& layouts);

  Settled settled_;
  std::shared_ptr<Tell> tell_;
  OfPython<References> python_;
};

// The request's claim, which takes its list's place where there is none yet.
pybind11::object claim_of(const pybind11::object& request);

// Tells Python what this thread has completed since: of a batch, with its lock taken once.
void hand_out();

}  // namespace lane
