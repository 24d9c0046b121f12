// The metadata by which the lane tells the grpcio server behind it who called, and what a call was
// chosen for. Whatever a client sends under such a name is dropped, so that grpcio's side can
// believe it.
#pragma once

#include <string_view>

namespace lane {

inline constexpr std::string_view private_metadata_prefix = "x-digits-";
inline constexpr std::string_view peer_address_metadata = "x-digits-peer";
// Of the client's certificate, percent-encoded as grpc-message is; absent without one.
inline constexpr std::string_view peer_identity_metadata = "x-digits-peer-identity";
// Of a ModelInfer: that it is one of the sample to be logged, or to be traced; or that it is in
// neither, although some are logged. Absent where the lane has not chosen.
inline constexpr std::string_view chosen_metadata = "x-digits-chosen";
inline constexpr std::string_view chosen_for_log = "log";
inline constexpr std::string_view chosen_for_trace = "trace";
inline constexpr std::string_view chosen_for_nothing = "no";

}  // namespace lane
