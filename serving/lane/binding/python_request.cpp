// Requests of Python in the lane's queue: their arrays, their claim, and how they hear of outcomes.
#include "python_request.h"

#include <algorithm>
#include <exception>
#include <functional>
#include <string>
#include <utility>
#include <variant>

#include "python_executor.h"

namespace py = pybind11;

namespace lane {

namespace {

RowSpec row_spec(const std::string& name, const py::array& array) {
  RowSpec spec;
  spec.name = name;
  spec.datatype = datatype_of(array.dtype());
  if (spec.datatype.empty()) {
    throw py::type_error("input '" + name + "' has a type that the lane does not carry: " +
                         py::str(array.dtype()).cast<std::string>());
  }
  spec.shape.assign(array.shape() + 1, array.shape() + array.ndim());
  spec.bytes = static_cast<std::size_t>(array.itemsize());
  for (const std::int64_t size : spec.shape) spec.bytes *= static_cast<std::size_t>(size);
  return spec;
}

void tell(const Tell& tell, const py::object& complete, const Answer& answer) {
  const Stages& stages = answer.stages;
  call(tell.answered, complete, arrays_of(answer, tell.facts), answer.queue_seconds,
       answer.request_seconds, stages.rows, stages.compute_input, stages.compute_infer,
       stages.compute_output);
}

void tell(const Tell& tell, const py::object& complete, const Refusal& refusal) {
  call(tell.refused, complete, plain(refusal));
}

}  // namespace

py::object cause_of(const std::exception_ptr& cause) {
  if (!cause) return py::none();
  try {
    std::rethrow_exception(cause);
  } catch (const PythonFailed& failed) {
    return *failed.error;
  } catch (...) {
    return py::handle(PyExc_RuntimeError)(text_of(cause));
  }
}

py::tuple plain(const Refusal& refusal) {
  return py::make_tuple(static_cast<int>(refusal.reason), refusal.details, refusal.retry_after,
                        refusal.closed, cause_of(refusal.cause));
}

// The order in which a request has them makes no difference.
std::vector<std::pair<std::string, py::array>> Layouts::ordered(const py::dict& arrays) const {
  std::vector<std::pair<std::string, py::array>> sorted;
  for (const auto& [name, value] : arrays) {
    sorted.emplace_back(py::cast<std::string>(name), contiguous(value));
  }
  const auto place = [&](const std::string& name) {
    return std::make_pair(std::find(inputs_.begin(), inputs_.end(), name), std::cref(name));
  };
  std::sort(sorted.begin(), sorted.end(), [&](const auto& one, const auto& other) {
    return place(one.first) < place(other.first);
  });
  return sorted;
}

LayoutPtr Layouts::shared(Layout layout) {
  if (newest_ && *newest_ == layout) return newest_;
  if (newest_) others_.push_back(newest_);
  newest_.reset();
  auto kept = others_.begin();
  for (auto& each : others_) {
    LayoutPtr living = each.lock();
    if (living && *living == layout) {
      newest_ = std::move(living);
    } else if (living) {
      *kept++ = std::move(each);
    }
  }
  others_.erase(kept, others_.end());
  if (!newest_) newest_ = std::make_shared<const Layout>(std::move(layout));
  return newest_;
}

Claim::Claim(py::object list) {
  if (py::len(list) == 0) {
    settled_->store(true);
  } else {
    complete_ = list.attr("pop")();
  }
}

py::object Claim::pop() {
  if (settled_->exchange(true)) throw py::index_error("the request is settled");
  return take_complete();
}

void Claim::withdraw(const py::object&) const {
  const std::shared_ptr<PythonRequest> withdrawn = request_.lock();  // let go under Python's lock
  const std::shared_ptr<Batcher> batcher = batcher_.lock();
  if (!withdrawn || !batcher) return;
  const WithoutPython others_run;
  batcher->withdraw(*withdrawn);
}

void Claim::queued(std::weak_ptr<PythonRequest> request, std::weak_ptr<Batcher> batcher) {
  request_ = std::move(request);
  batcher_ = std::move(batcher);
}

py::object claim_of(const py::object& request) {
  py::object had = request.attr("_complete");
  if (py::isinstance<Claim>(had)) return had;
  py::object claim = py::cast(std::make_unique<Claim>(std::move(had)));
  request.attr("_complete") = claim;
  return claim;
}

PythonRequest::PythonRequest(const py::object& request, Layouts& layouts,
                             std::shared_ptr<Tell> tell)
    : tell_(std::move(tell)), python_(of_python<References>()) {
  read_inputs(request.attr("inputs"), layouts);
  rows = request.attr("rows").cast<std::int64_t>();
  arrived = request.attr("arrived").cast<Seconds>();
  deadline = request.attr("deadline").cast<Seconds>();
  priority = request.attr("priority").cast<int>();
  background = request.attr("background").cast<bool>();
  python_->claim = claim_of(request);  // last: nothing fails any more
  settled_ = python_->claim.cast<const Claim&>().settled();
}

void PythonRequest::read_inputs(const py::dict& arrays, Layouts& layouts) {
  Layout its;
  for (auto& [name, array] : layouts.ordered(arrays)) {
    if (!array) throw py::type_error("input '" + name + "' is no array");
    its.inputs.push_back(row_spec(name, array));
    inputs.push_back(static_cast<const std::byte*>(array.data()));
    python_->inputs.push_back(std::move(array));
  }
  layout = layouts.shared(std::move(its));
}

std::vector<PythonRequest::Completed>& PythonRequest::completed() {
  static thread_local std::vector<Completed> those;
  return those;
}

void PythonRequest::complete(Outcome outcome) {
  completed().push_back({std::move(python_), tell_, std::move(outcome)});
}

void hand_out() {
  if (PythonRequest::completed().empty() || python_is_ending()) return;
  const WithPython python;
  std::vector<PythonRequest::Completed> completed;  // goes while the lock is held
  completed.swap(PythonRequest::completed());
  for (const auto& each : completed) {
    const py::object complete = each.python->claim.cast<Claim&>().take_complete();
    try {
      std::visit([&](const auto& outcome) { tell(*each.tell, complete, outcome); }, each.outcome);
    } catch (py::error_already_set& error) {
      error.discard_as_unraisable("an outcome could not be handed out");
    }
  }
}

}  // namespace lane
