// Counters of the lane over memory of Python's, which finds new slots for them.
//
// Whatever C++ points into is kept by what points there, and let go under Python's lock.
#pragma once

#include <pybind11/pybind11.h>

#include <functional>
#include <memory>

#include "counters.h"
#include "service.h"

namespace lane {

// `slots` by the names of ModelSeries; `histograms` by name, with their bounds; `predictions` by
// label. `refusal` gives two slots for a status's name and a reason's number, `batches` one for a
// number of rows. Every slot is a memoryview of float64. KeyError for a name that is missing.
std::shared_ptr<ModelCounters> counters_of_python(const pybind11::dict& slots,
                                                  const pybind11::dict& histograms,
                                                  const pybind11::list& predictions,
                                                  pybind11::object refusal,
                                                  pybind11::object batches);

// `connections` by the names of ConnectionSeries and Dropped, and likewise.
ServiceSeries service_series(pybind11::object refusal, pybind11::object request_bytes,
                             pybind11::object in_flight, const pybind11::dict& connections);

}  // namespace lane
