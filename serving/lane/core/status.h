// How a request is refused: a canonical gRPC status, why (as the metrics count it), and a text.
#pragma once

#include <exception>
#include <stdexcept>
#include <string>
#include <utility>

namespace lane {

// https://grpc.io/docs/guides/status-codes/
enum class Code : int {
  ok = 0,
  cancelled = 1,
  invalid_argument = 3,
  deadline_exceeded = 4,
  not_found = 5,
  permission_denied = 7,
  resource_exhausted = 8,
  unimplemented = 12,
  internal = 13,
  unavailable = 14,
  unauthenticated = 16,
};

// serving/errors.py's Rejection, in its order.
enum class Reason : int {
  queue_full,
  overloaded,
  invalid_input,
  model_not_found,
  model_not_ready,
  deadline,
  cancelled,
  failed,
  draining,
  unauthenticated,
  not_allowed,
  rate_limited,
};

// Seconds after which a refused caller may try again, at least.
inline constexpr double kShortestRetry = 0.01;

struct Refusal {
  Code code = Code::internal;
  Reason reason = Reason::failed;
  std::string details;
  double retry_after = -1;  // seconds, where trying again is worth while
  // The version is being unloaded: whoever asks finds another, and nobody is told.
  bool closed = false;
  // What the executor threw, where the model failed: for the log, not for the caller.
  std::exception_ptr cause = nullptr;
};

inline Refusal invalid_input(std::string details) {
  return {Code::invalid_argument, Reason::invalid_input, std::move(details)};
}

// A batch could not be run; what() is for the log.
struct RunFailed : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Of a cause, for the log.
inline std::string text_of(const std::exception_ptr& cause) {
  try {
    if (cause) std::rethrow_exception(cause);
    return {};
  } catch (const std::exception& error) {
    return error.what();
  } catch (...) {
    return "an unknown exception";
  }
}

}  // namespace lane
