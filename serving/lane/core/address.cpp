// The text of a peer's address.
#include "address.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <array>
#include <cstring>

namespace lane {
namespace {

std::string ipv4(const in_addr& address, in_port_t port) {
  std::array<char, INET_ADDRSTRLEN> text{};
  inet_ntop(AF_INET, &address, text.data(), text.size());
  return std::string("ipv4:") + text.data() + ":" + std::to_string(ntohs(port));
}

std::string ipv6(const sockaddr_in6& from) {
  if (IN6_IS_ADDR_V4MAPPED(&from.sin6_addr)) {
    in_addr inner{};
    std::memcpy(&inner, from.sin6_addr.s6_addr + 12, sizeof inner);
    return ipv4(inner, from.sin6_port);
  }
  std::array<char, INET6_ADDRSTRLEN> text{};
  inet_ntop(AF_INET6, &from.sin6_addr, text.data(), text.size());
  // gRPC writes a URI, where brackets and per cent are escaped.
  const std::string scope = from.sin6_scope_id ? "%25" + std::to_string(from.sin6_scope_id) : "";
  return "ipv6:%5B" + std::string(text.data()) + scope + "%5D:" +
         std::to_string(ntohs(from.sin6_port));
}

}  // namespace

std::string peer_address(const sockaddr_storage& address) {
  if (address.ss_family == AF_INET) {
    sockaddr_in from{};
    std::memcpy(&from, &address, sizeof from);
    return ipv4(from.sin_addr, from.sin_port);
  }
  if (address.ss_family == AF_INET6) {
    sockaddr_in6 from{};
    std::memcpy(&from, &address, sizeof from);
    return ipv6(from);
  }
  return "unix:";
}

}  // namespace lane
