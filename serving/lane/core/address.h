// The text of a peer's address, as grpcio's context.peer() has it.
#pragma once

#include <sys/socket.h>

#include <string>

namespace lane {

// "ipv4:127.0.0.1:5000", "ipv6:%5B::1%5D:5000", or "unix:" for what has no address. An IPv4 address
// in IPv6's clothes is shown as what it is.
std::string peer_address(const sockaddr_storage& address);

}  // namespace lane
