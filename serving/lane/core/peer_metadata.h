// The metadata by which the lane tells the grpcio server behind it who called. Whatever a client
// sends under such a name is dropped, so that grpcio's side can believe it.
#pragma once

#include <string_view>

namespace lane {

inline constexpr std::string_view peer_metadata_prefix = "x-digits-peer";
inline constexpr std::string_view peer_address_metadata = "x-digits-peer";
// Of the client's certificate, percent-encoded as grpc-message is; absent without one.
inline constexpr std::string_view peer_identity_metadata = "x-digits-peer-identity";

}  // namespace lane
