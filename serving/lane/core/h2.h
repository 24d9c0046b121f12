// What sessions of nghttp2 have in common, those with clients and those with grpcio's server.
#pragma once

#include <nghttp2/nghttp2.h>

namespace lane {

// What a callback does must not throw through nghttp2, which is C: then, the session fails.
template <typename Act>
int guarded(Act act) noexcept {
  try {
    act();
    return 0;
  } catch (...) {
    return NGHTTP2_ERR_CALLBACK_FAILURE;
  }
}

// gRPC's metadata may begin and end with spaces, and whoever asks grpcio directly gets them. An
// nghttp2 without the option does not look for them.
template <typename T>
auto allow_outer_spaces(T* option)
    -> decltype(nghttp2_option_set_no_rfc9113_leading_and_trailing_ws_validation(option, 1)) {
  nghttp2_option_set_no_rfc9113_leading_and_trailing_ws_validation(option, 1);
}
[[maybe_unused]] inline void allow_outer_spaces(...) {}

}  // namespace lane
