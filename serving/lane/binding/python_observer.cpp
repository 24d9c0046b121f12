// What a batcher does, told to functions of Python.
#include "python_observer.h"

#include <pybind11/stl.h>

#include <utility>

#include "python_request.h"

namespace py = pybind11;

namespace lane {

PythonObserver::PythonObserver(py::object observe, py::object failed)
    : python_(of_python<References>(References{std::move(observe), std::move(failed)})) {}

template <typename... Arguments>
void PythonObserver::tell(py::object References::*who, const Arguments&... arguments) {
  const py::object& told = (*python_).*who;
  if (told.is_none() || python_is_ending()) return;
  const WithPython python;
  try {
    call(told, arguments...);
  } catch (py::error_already_set& error) {
    error.discard_as_unraisable("a batch could not be observed");
  }
}

void PythonObserver::ran(const Execution& execution) {
  const Stages& stages = execution.stages;
  tell(&References::observe, execution.rows, execution.request_rows, execution.queue_seconds,
       execution.request_seconds, stages.compute_input, stages.compute_infer,
       stages.compute_output);
}

void PythonObserver::failed(const std::string& warning) { tell(&References::failed, warning); }

void HandingOut::handed_out() {
  inner_->handed_out();
  hand_out();
}

}  // namespace lane
