// Slots of Python's mapped memory as the lane's counters have them.
#include "counters_of_python.h"

#include <utility>
#include <vector>

#include <pybind11/stl.h>

#include "interpreter.h"

namespace py = pybind11;

namespace lane {
namespace {

// The name that the metrics have for a status.
const char* name_of(Code code) {
  switch (code) {
    case Code::ok: return "OK";
    case Code::cancelled: return "CANCELLED";
    case Code::invalid_argument: return "INVALID_ARGUMENT";
    case Code::deadline_exceeded: return "DEADLINE_EXCEEDED";
    case Code::not_found: return "NOT_FOUND";
    case Code::permission_denied: return "PERMISSION_DENIED";
    case Code::resource_exhausted: return "RESOURCE_EXHAUSTED";
    case Code::unimplemented: return "UNIMPLEMENTED";
    case Code::internal: return "INTERNAL";
    case Code::unavailable: return "UNAVAILABLE";
    case Code::unauthenticated: return "UNAUTHENTICATED";
  }
  return "UNKNOWN";
}

// What C++ points into: a list of Python's that is let go under its lock.
using Views = std::shared_ptr<py::list>;

Views new_views() {
  return shared_of_python<py::list>();
}

Slots slots_of(const Views& views, const py::handle& view) {
  views->append(view);
  const Py_buffer* buffer = PyMemoryView_GET_BUFFER(view.ptr());
  const auto bytes = static_cast<std::size_t>(buffer->len);
  return {static_cast<double*>(buffer->buf), bytes / sizeof(double)};
}

// A function of Python, which threads of C++ call.
using Function = std::shared_ptr<py::object>;

std::function<std::pair<Slots, Slots>(Code, Reason)> refusals(const Views& views,
                                                              const Function& function) {
  return [views, function](Code code, Reason reason) -> std::pair<Slots, Slots> {
    if (python_is_ending()) return {};
    const WithPython python;
    try {
      const py::tuple found = call(*function, name_of(code), static_cast<int>(reason));
      return {slots_of(views, found[0]), slots_of(views, found[1])};
    } catch (py::error_already_set& error) {
      error.discard_as_unraisable("counting a refusal");
      return {};
    }
  };
}

std::function<Slots(std::int64_t)> batches_of(const Views& views, const Function& function) {
  return [views, function](std::int64_t rows) -> Slots {
    if (python_is_ending()) return {};
    const WithPython python;
    try {
      return slots_of(views, call(*function, rows));
    } catch (py::error_already_set& error) {
      error.discard_as_unraisable("counting a batch");
      return {};
    }
  };
}

}  // namespace

std::shared_ptr<ModelCounters> counters_of_python(const py::dict& slots, const py::dict& histograms,
                                                  const py::list& predictions, py::object refusal,
                                                  py::object batches) {
  const Views views = new_views();
  const auto one = [&](const char* name) {
    return slots.contains(name) ? slots_of(views, slots[name]) : Slots{};
  };
  const auto histogram = [&](const char* name) {
    if (!histograms.contains(name)) return Histogram{};
    const py::tuple found = histograms[name];
    return Histogram{slots_of(views, found[0]), std::make_shared<const std::vector<double>>(
                                                    found[1].cast<std::vector<double>>())};
  };
  ModelSeries series;
  series.answered = one("answered");
  series.inferences = one("inferences");
  series.executions = one("executions");
  series.request_bytes = one("request_bytes");
  series.response_bytes = one("response_bytes");
  series.pending = one("pending");
  series.busy = one("busy");
  series.kept = one("kept");
  series.last_inference = one("last_inference");
  series.predicted = one("predicted");
  series.request_rows = histogram("request_rows");
  series.request_seconds = histogram("request_seconds");
  series.queue_seconds = histogram("queue_seconds");
  series.compute_input = histogram("compute_input");
  series.compute_infer = histogram("compute_infer");
  series.compute_output = histogram("compute_output");
  series.batch_rows = histogram("batch_rows");
  series.confidence = histogram("confidence");
  series.ink = histogram("ink");
  for (const py::handle& view : predictions) series.predictions.push_back(slots_of(views, view));
  series.refusal = refusals(views, shared_of_python<py::object>(std::move(refusal)));
  series.batches = batches_of(views, shared_of_python<py::object>(std::move(batches)));
  return std::make_shared<ModelCounters>(std::move(series));
}

ServiceSeries service_series(py::object refusal, py::object request_bytes, py::object in_flight,
                             const py::dict& connections) {
  const Views views = new_views();
  const auto one = [&](const char* name) { return slots_of(views, connections[name]); };
  return {refusals(views, shared_of_python<py::object>(std::move(refusal))),
          slots_of(views, request_bytes),
          slots_of(views, in_flight),
          {one("open"),
           one("turned_away"),
           {one("abuse"), one("keepalive"), one("handshake"), one("stalled")},
           one("stalled_requests")}};
}

}  // namespace lane
