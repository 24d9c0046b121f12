// Wires over socket pairs: plain, and TLS against OpenSSL's client.
#include "wire.h"

#include <arpa/inet.h>
#include <doctest/doctest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>

#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "address.h"
#include "certificates.h"
#include "tls_client.h"

namespace lane {
namespace {

std::pair<Descriptor, Descriptor> socket_pair() {
  int ends[2] = {-1, -1};
  REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) == 0);
  return {Descriptor(ends[0]), Descriptor(ends[1])};
}

std::string read_all(Wire& wire) {
  std::string bytes(1 << 16, '\0');
  const ssize_t count = wire.read(bytes.data(), bytes.size());
  bytes.resize(count > 0 ? static_cast<std::size_t>(count) : 0);
  return bytes;
}

// A server's wire and a client, whose handshake has come as far as it goes.
struct Pair {
  Pair(const TlsOptions& options, TlsClient::Options client_options) {
    signal(SIGPIPE, SIG_IGN);  // as the server's thread blocks it
    auto [server, client_end] = socket_pair();
    wire = Tls(options).wire(std::move(server));
    client = std::make_unique<TlsClient>(std::move(client_end), std::move(client_options));
    for (int step = 0; step < 10; ++step) {
      client->handshake();
      char nothing = 0;
      last = wire->read(&nothing, 0);
      if (!wire->ready()) last = wire->read(&nothing, 1);
    }
  }
  std::unique_ptr<Wire> wire;
  std::unique_ptr<TlsClient> client;
  ssize_t last = 0;
};

struct Files {
  Directory directory;
  Authority authority{directory};
  TlsOptions options(bool clients = false) const { return authority.serving("server", clients); }
};

TEST_CASE("a plain wire says what came, that nothing came, and that it is over") {
  auto [one, other] = socket_pair();
  const auto wire = plain_wire(std::move(one));
  char byte = 0;
  CHECK(wire->read(&byte, 1) == Wire::again);
  CHECK(::send(other.get(), "x", 1, 0) == 1);
  CHECK(wire->read(&byte, 1) == 1);
  CHECK(wire->write("answer", 6) == 6);
  wire->finish();
  char answer[8] = {};
  CHECK(::recv(other.get(), answer, sizeof answer, 0) == 6);
  CHECK(::recv(other.get(), answer, sizeof answer, 0) == 0);
}

TEST_CASE("a plain wire whose other end is gone is over, without a signal") {
  auto [one, other] = socket_pair();
  const auto wire = plain_wire(std::move(one));
  { const Descriptor closed = std::move(other); }
  char byte = 0;
  CHECK(wire->read(&byte, 1) == 0);
  CHECK(wire->write("answer", 6) == Wire::broken);
}

TEST_CASE("bytes go both ways by TLS, more than a record holds") {
  const Files files;
  Pair pair(files.options(), {files.authority.file()});
  REQUIRE(pair.wire->ready());
  CHECK(pair.client->protocol() == "h2");
  CHECK(pair.wire->identity() == "");
  const std::string large(40000, 'a');
  CHECK(pair.client->write(large) == large.size());
  CHECK(read_all(*pair.wire) == large);
  std::size_t sent = 0;
  while (sent < large.size()) {
    const ssize_t count = pair.wire->write(large.data() + sent, large.size() - sent);
    REQUIRE(count > 0);
    sent += static_cast<std::size_t>(count);
  }
  CHECK(pair.client->read() == large);
  pair.wire->finish();
  CHECK(pair.client->read() == "");
  CHECK(pair.client->closed());
}

TEST_CASE("a client that does not speak HTTP/2 is refused") {
  const Files files;
  for (const char* protocol : {"http/1.1", ""}) {
    Pair pair(files.options(), {files.authority.file(), {}, {}, protocol});
    CHECK_FALSE(pair.wire->ready());
    CHECK(pair.last == Wire::broken);
  }
}

TEST_CASE("a client without the certificate that is asked for is refused, one with it is known") {
  const Files files;
  const TlsOptions options = files.options(true);
  Pair nobody(options, {files.authority.file()});
  CHECK_FALSE(nobody.wire->ready());
  const std::pair<std::string, std::string> names[] = {
      {"DNS:one.example,DNS:two.example", "one.example"},
      {"email:a@b.example,DNS:one.example", "a@b.example"},
      {"URI:spiffe://x/y", "spiffe://x/y"},
      {"IP:10.0.0.1", "10.0.0.1"},
      {"IP:fd00::1", "fd00::1"},
      {"", "Ada Lovelace"},
      {"", "Ève Łukasz"},
      {"", "O=100%"},
  };
  const auto identity_by = [&](const std::string& alternative, const std::string& common) {
    const auto certificate = files.authority.sign("client", alternative, common);
    Pair pair(options, {files.authority.file(), certificate, files.directory.file("client.key")});
    REQUIRE(pair.wire->ready());
    return pair.wire->identity();
  };
  for (const auto& [alternative, identity] : names) {
    const std::string common = alternative.empty() ? identity : "client";
    CHECK(identity_by(alternative, common) == identity);
  }
  for (const char* garbled : {"Ada\nLovelace", "Ada\x7f", "\t"}) {
    CHECK(identity_by("", garbled) == "");
  }
}

TEST_CASE("what is no good is named by its option") {
  const Files files;
  const TlsOptions good = files.options();
  const auto told = [](const TlsOptions& options) -> std::string {
    try {
      Tls tls(options);
      return "taken";
    } catch (const std::runtime_error& error) {
      return error.what();
    }
  };
  const std::string cut = good.certificate.substr(0, good.certificate.size() / 2);
  const std::string two = good.certificate + content(files.authority.file());
  const std::string other = files.authority.serving("other").key;
  CHECK(told(good) == "taken");
  CHECK(told({two, good.key, two}) == "taken");
  CHECK(told({"", good.key, ""}) == "--tls-certificate: no start line");
  CHECK(told({"rubbish\n", good.key, ""}) == "--tls-certificate: no start line");
  CHECK(told({cut, good.key, ""}) != "taken");
  CHECK(told({good.certificate + cut, good.key, ""}) != "taken");
  CHECK(told({good.certificate, other, ""}) == "--tls-key: key values mismatch");
  CHECK(told({good.certificate, good.certificate, ""}) != "taken");
  CHECK(told({good.certificate, good.key, "rubbish"}) == "--tls-client-ca: no start line");
}

TEST_CASE("a peer's address is told as grpcio tells it") {
  const auto told = [](const char* address, std::uint32_t scope = 0) {
    sockaddr_storage storage{};
    sockaddr_in6 six{};
    six.sin6_family = AF_INET6;
    six.sin6_port = htons(5000);
    six.sin6_scope_id = scope;
    REQUIRE(inet_pton(AF_INET6, address, &six.sin6_addr) == 1);
    std::memcpy(&storage, &six, sizeof six);
    return peer_address(storage);
  };
  CHECK(told("::1") == "ipv6:%5B::1%5D:5000");
  CHECK(told("fe80::1", 2) == "ipv6:%5Bfe80::1%252%5D:5000");
  CHECK(told("::ffff:10.0.0.1") == "ipv4:10.0.0.1:5000");
  sockaddr_storage storage{};
  sockaddr_in four{};
  four.sin_family = AF_INET;
  four.sin_port = htons(80);
  four.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::memcpy(&storage, &four, sizeof four);
  CHECK(peer_address(storage) == "ipv4:127.0.0.1:80");
  storage.ss_family = AF_UNIX;
  CHECK(peer_address(storage) == "unix:");
}

}  // namespace
}  // namespace lane
