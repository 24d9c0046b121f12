// The whole lane over real sockets: a server with a model that computes, and what stands in for
// grpcio's server.
#include "server.h"

#include <arpa/inet.h>
#include <doctest/doctest.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "certificates.h"
#include "echo_server.h"
#include "http2_client.h"
#include "loop.h"
#include "serving.h"
#include "tls_client.h"

namespace lane {
namespace {

// Answers leave together, as those of a batch do.
class Flushing : public BatchObserver {
 public:
  explicit Flushing(std::shared_ptr<Outbox> outbox) : outbox_(std::move(outbox)) {}
  void handed_out() override { outbox_->flush(); }

 private:
  std::shared_ptr<Outbox> outbox_;
};

std::pair<int, int> listener() {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  REQUIRE(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  REQUIRE(listen(fd, 1000) == 0);
  socklen_t size = sizeof address;
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  return {fd, ntohs(address.sin_port)};
}

// y = 3x behind a server of its own.
struct Lane {
  // `send_buffer` is that of its sockets, in bytes; 0 leaves it to the kernel.
  explicit Lane(ServerOptions options = {}, int send_buffer = 0) {
    Signature signature{"times", "7", {{"x", "FP32", {-1, -1}}}, {{"y", "FP32", {-1, -1}}}, {}};
    BatcherOptions batching;
    batching.max_batch_size = 64;
    batching.max_queue_size = 100000;
    auto batcher = std::make_shared<Batcher>(model, batching,
                                             std::make_shared<Flushing>(as_outbox(outbox)));
    auto counters = std::make_shared<ModelCounters>(ModelSeries());
    ServiceOptions serving;
    serving.room = 100000;
    serving.prediction_ids = false;
    service = std::make_shared<InferService>(serving, as_outbox(outbox), nullptr, ServiceSeries());
    service->set_routes(
        {{{"times", ""}, std::make_shared<ServedModel>(signature, batcher, counters)}});
    const auto [fd, number] = listener();
    port = number;
    if (send_buffer > 0) setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &send_buffer, sizeof send_buffer);
    options.listeners = {fd};
    if (options.upstream_path.empty()) options.upstream_path = directory.file("nobody");
    server = std::make_unique<Server>(std::move(options), service, outbox);
    server->start();
  }

  Directory directory;
  std::shared_ptr<Tripler> model = std::make_shared<Tripler>();
  std::shared_ptr<ServerOutbox> outbox = make_outbox();
  std::shared_ptr<InferService> service;
  std::unique_ptr<Server> server;
  int port = 0;
};

Descriptor connected(int port) {
  Descriptor socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  const auto* where = reinterpret_cast<const sockaddr*>(&address);
  return ::connect(socket.get(), where, sizeof address) == 0 ? std::move(socket) : Descriptor();
}

// An HTTP/2 client with a socket, or with TLS over it.
class Caller {
 public:
  explicit Caller(int port) : socket_(connected(port)) { REQUIRE(socket_); }
  Caller(int port, TlsClient::Options options) {
    Descriptor socket = connected(port);
    fcntl(socket.get(), F_SETFL, O_NONBLOCK);
    tls_ = std::make_unique<TlsClient>(std::move(socket), std::move(options));
  }

  Http2Client http;
  int fd() const { return tls_ ? tls_->fd() : socket_.get(); }
  bool closed() const { return closed_; }

  // Sends and reads until it is true, or nothing more will come.
  bool until(const std::function<bool()>& true_) {
    const Seconds latest = now() + kPatience;
    while (now() < latest) {
      send();
      if (true_() || closed_) return true_();
      pollfd ready{fd(), static_cast<short>(out_.empty() ? POLLIN : POLLIN | POLLOUT), 0};
      if (tls_ && !shaken_) ready.events = POLLIN;
      poll(&ready, 1, 1000);
      read();
    }
    return false;
  }
  bool until_ended(std::int32_t id) {
    return until([&] { return http[id].ended || http[id].reset; });
  }
  bool until_closed() {
    return until([&] { return closed_; });
  }
  void send() {
    out_ += http.output();
    if (tls_ && !shaken_) shaken_ = tls_->handshake();
    if (out_.empty() || (tls_ && !shaken_)) return;
    if (tls_) {
      out_.erase(0, tls_->write(out_));
      return;
    }
    const ssize_t sent = ::send(fd(), out_.data(), out_.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent > 0) out_.erase(0, static_cast<std::size_t>(sent));
  }

 private:
  void read() {
    if (tls_ && !shaken_) return;
    if (tls_) {
      http.input(tls_->read());
      closed_ = tls_->closed();
      return;
    }
    char buffer[65536];
    const ssize_t count = ::recv(fd(), buffer, sizeof buffer, MSG_DONTWAIT);
    if (count > 0) http.input({buffer, static_cast<std::size_t>(count)});
    closed_ = count == 0 || (count < 0 && errno != EAGAIN);
  }

  Descriptor socket_;
  std::unique_ptr<TlsClient> tls_;
  std::string out_;
  bool shaken_ = false;
  bool closed_ = false;
};

bool eventually(const std::function<bool()>& true_) {
  const Seconds latest = now() + kPatience;
  while (!true_() && now() < latest) std::this_thread::yield();
  return true_();
}

Headers other_method() {
  return with(infer_headers(), ":path", "/inference.GRPCInferenceService/ServerLive");
}

TEST_CASE("a request is answered over a socket") {
  Lane lane;
  Caller caller(lane.port);
  const std::int32_t id = caller.http.infer(times_request({1, 2}));
  REQUIRE(caller.until_ended(id));
  CHECK(last_floats(caller.http[id].body, 2) == std::vector<float>{3, 6});
  CHECK(caller.http[id].trailers.at("grpc-status") == "0");
  CHECK(lane.server->connections() == 1);
  CHECK(lane.service->in_flight() == 0);
}

TEST_CASE("a client that goes away is forgotten, and what it asked for") {
  Lane lane;
  lane.model->hold();
  {
    Caller caller(lane.port);
    caller.http.infer(times_request({1}));
    caller.send();
    REQUIRE(lane.model->entered.acquire());
  }
  CHECK(eventually([&] { return lane.server->connections() == 0; }));
  lane.model->release();
  CHECK(lane.server->wait_until_idle(kPatience));
}

TEST_CASE("500 connections are answered side by side") {
  Lane lane;
  std::vector<std::unique_ptr<Caller>> callers;
  std::vector<std::vector<std::int32_t>> ids;
  for (int number = 0; number < 500; ++number) {
    callers.push_back(std::make_unique<Caller>(lane.port));
    ids.emplace_back();
    for (int count = 0; count < 4; ++count)
      ids.back().push_back(
          callers.back()->http.infer(times_request({static_cast<float>(number * 10 + count)})));
    callers.back()->send();
  }
  for (int number = 0; number < 500; ++number) {
    for (int count = 0; count < 4; ++count) {
      REQUIRE(callers[number]->until_ended(ids[number][count]));
      const std::vector<float> expected{static_cast<float>(3 * (number * 10 + count))};
      REQUIRE(last_floats(callers[number]->http[ids[number][count]].body, 1) == expected);
    }
  }
  CHECK(lane.server->connections() == 500);
}

TEST_CASE("what the lane does not answer is passed on, with who called") {
  Directory directory;
  EchoServer echo(directory.file("grpc"));
  ServerOptions options;
  options.upstream_path = directory.file("grpc");
  Lane lane(options);
  Caller caller(lane.port);
  const std::string large = frame_prefix(1000000) + std::string(1000000, 'x');
  const std::int32_t first = caller.http.request(other_method(), large);
  const std::int32_t second = caller.http.request(other_method(), frame_prefix(1) + "y");
  const std::int32_t third = caller.http.infer(times_request({2}));
  for (const std::int32_t id : {first, second, third}) REQUIRE(caller.until_ended(id));
  CHECK(caller.http[first].body == large);
  CHECK(caller.http[second].body == frame_prefix(1) + "y");
  CHECK(caller.http[second].trailers.at("grpc-status") == "0");
  CHECK(last_floats(caller.http[third].body, 1) == std::vector<float>{6});
  sockaddr_in own{};
  socklen_t size = sizeof own;
  getsockname(caller.fd(), reinterpret_cast<sockaddr*>(&own), &size);
  const std::string port = std::to_string(ntohs(own.sin_port));
  CHECK(caller.http[second].headers.at("peer") == "ipv4:127.0.0.1:" + port);
}

TEST_CASE("without grpcio's server what would be passed on is refused, and others are answered") {
  Lane lane;
  Caller caller(lane.port);
  for (int count = 0; count < 2; ++count) {
    const std::int32_t passed = caller.http.request(other_method(), frame_prefix(0));
    const std::int32_t own = caller.http.infer(times_request({1}));
    REQUIRE(caller.until_ended(passed));
    REQUIRE(caller.until_ended(own));
    CHECK(caller.http[passed].headers.at("grpc-status") == "14");
    CHECK(last_floats(caller.http[own].body, 1) == std::vector<float>{3});
  }
}

TEST_CASE("grpcio's server may go and come back") {
  Directory directory;
  ServerOptions options;
  options.upstream_path = directory.file("grpc");
  Lane lane(options);
  Caller caller(lane.port);
  for (const bool there : {true, false, true}) {
    std::unique_ptr<EchoServer> echo;
    std::filesystem::remove(options.upstream_path);
    if (there) echo = std::make_unique<EchoServer>(options.upstream_path);
    // One that was lost while nothing was asked is noticed by the call after it, at the latest.
    const auto answered = [&] {
      const std::int32_t id = caller.http.request(other_method(), frame_prefix(0));
      REQUIRE(caller.until_ended(id));
      return caller.http[id].headers.count("peer") == 1;
    };
    CHECK(eventually([&] { return answered() == there; }));
  }
}

TEST_CASE("a socket that grpcio's server has closed is closed here, too") {
  Directory directory;
  ServerOptions options;
  options.upstream_path = directory.file("grpc");
  const Descriptor upstream(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  options.upstream_path.copy(address.sun_path, sizeof address.sun_path - 1);
  REQUIRE(bind(upstream.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  REQUIRE(listen(upstream.get(), 1) == 0);
  Lane lane(options);
  Caller caller(lane.port);
  const std::int32_t id = caller.http.request(other_method(), frame_prefix(0));
  caller.send();
  const Descriptor accepted(::accept(upstream.get(), nullptr, nullptr));
  ::shutdown(accepted.get(), SHUT_WR);
  REQUIRE(caller.until_ended(id));
  CHECK(caller.http[id].headers.at("grpc-status") == "14");
  const timeval patience{static_cast<time_t>(kPatience), 0};
  setsockopt(accepted.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  char buffer[4096];
  ssize_t count = 0;
  while ((count = ::recv(accepted.get(), buffer, sizeof buffer, 0)) > 0) continue;
  CHECK(count == 0);
}

TEST_CASE("by TLS a call is answered, or passed on with the certificate's name") {
  Directory directory;
  Authority authority(directory);
  EchoServer echo(directory.file("grpc"));
  ServerOptions options;
  options.upstream_path = directory.file("grpc");
  options.tls = authority.serving("server", true);
  Lane lane(options);
  Caller caller(lane.port, {authority.file(), authority.sign("client", "DNS:client.example"),
                            directory.file("client.key")});
  const std::string large = frame_prefix(600000) + std::string(600000, 'x');
  const std::int32_t first = caller.http.infer(times_request({1}));
  const std::int32_t second = caller.http.request(other_method(), large);
  REQUIRE(caller.until_ended(first));
  REQUIRE(caller.until_ended(second));
  CHECK(last_floats(caller.http[first].body, 1) == std::vector<float>{3});
  CHECK(caller.http[second].body == large);
  CHECK(caller.http[second].headers.at("identity") == "client.example");
}

TEST_CASE("what is renewed is for new connections, and those that are there go on") {
  Directory directory;
  Authority authority(directory);
  Directory elsewhere;
  Authority another(elsewhere);
  ServerOptions options;
  options.tls = authority.serving("server");
  Lane lane(options);
  const auto answered = [](Caller& caller) {
    return caller.until_ended(caller.http.infer(times_request({1})));
  };
  Caller before(lane.port, {authority.file()});
  REQUIRE(answered(before));
  lane.server->renew(another.serving("server"));
  Caller after(lane.port, {another.file()});
  CHECK(answered(after));
  CHECK(answered(before));
  CHECK_THROWS_AS(lane.server->renew({"rubbish", "", ""}), std::runtime_error);
  Caller still(lane.port, {another.file()});
  CHECK(answered(still));
}

TEST_CASE("what is renewed while clients come is taken by each of them whole") {
  Directory directory;
  Authority authority(directory);
  const TlsOptions one = authority.serving("one", true);
  const TlsOptions two = authority.serving("two", true);
  const std::string client = authority.sign("client", "DNS:client.example");
  ServerOptions options;
  options.tls = one;
  Lane lane(options);
  std::atomic<bool> over{false};
  std::thread renewing([&] {
    for (bool odd = false; !over; odd = !odd) lane.server->renew(odd ? one : two);
  });
  int answered = 0;
  for (int count = 0; count < 30; ++count) {
    Caller caller(lane.port, {authority.file(), client, directory.file("client.key")});
    answered += caller.until_ended(caller.http.infer(times_request({1})));
  }
  over = true;
  renewing.join();
  CHECK(answered == 30);
}

TEST_CASE("who does not shake hands is let go in time") {
  Directory directory;
  Authority authority(directory);
  ServerOptions options;
  options.limits.handshake_timeout = 0.2;
  options.tls = authority.serving("server");
  Lane lane(options);
  Caller silent(lane.port);
  CHECK(eventually([&] { return lane.server->connections() == 1; }));
  CHECK(eventually([&] { return lane.server->connections() == 0; }));
}

TEST_CASE("beyond the limit of connections one is closed at once, and there is room again later") {
  ServerOptions options;
  options.max_connections = 2;
  Lane lane(options);
  Caller first(lane.port);
  auto second = std::make_unique<Caller>(lane.port);
  for (Caller* each : {&first, second.get()})
    REQUIRE(each->until_ended(each->http.infer(times_request({1}))));
  Caller third(lane.port);
  CHECK(third.until_closed());
  CHECK(lane.server->connections() == 2);
  CHECK(lane.server->turned_away() == 1);
  second.reset();
  CHECK(eventually([&] { return lane.server->connections() == 1; }));
  Caller fourth(lane.port);
  CHECK(fourth.until_ended(fourth.http.infer(times_request({1}))));
}

TEST_CASE("a client that does not read is let go, and others are answered meanwhile") {
  ServerOptions options;
  options.limits.stall_timeout = 1.0;  // time for several answers, also where all is slow
  Lane lane(options, 4096);
  Caller deaf(lane.port);
  REQUIRE(deaf.until_ended(deaf.http.infer(times_request({1}))));  // knows the server's settings
  const int small = 4096;
  setsockopt(deaf.fd(), SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
  for (int count = 0; count < 4000; ++count) deaf.http.request(other_method(), frame_prefix(0));
  const Seconds latest = now() + kPatience;
  Caller other(lane.port);
  int answers = 0;
  do {
    deaf.send();
    REQUIRE(other.until_ended(other.http.infer(times_request({1}))));
    ++answers;
  } while (lane.server->connections() != 1 && now() < latest);
  CHECK(lane.server->connections() == 1);
  CHECK(answers > 1);
}

TEST_CASE("draining, calls in flight are answered, clients asked to go, and nobody can connect") {
  Lane lane;
  lane.model->hold();
  Caller busy(lane.port);
  Caller idle(lane.port);
  const std::int32_t id = busy.http.infer(times_request({5}));
  busy.send();
  REQUIRE(idle.until([&] { return lane.server->connections() == 2; }));
  REQUIRE(lane.model->entered.acquire());
  lane.server->drain();
  CHECK(idle.until_closed());
  CHECK_FALSE(idle.http.goaways.empty());
  CHECK_FALSE(connected(lane.port));
  CHECK_FALSE(lane.server->wait_until_idle(0.01));
  lane.model->release();
  CHECK(lane.server->wait_until_idle(kPatience));
  lane.server->stop();
  CHECK(busy.until_ended(id));
  CHECK(last_floats(busy.http[id].body, 1) == std::vector<float>{15});
  CHECK(busy.until_closed());
  CHECK(lane.server->connections() == 0);
}

TEST_CASE("draining, who has connected and waits to be accepted is asked to go, and not reset") {
  const auto outbox = make_outbox();
  const auto service = std::make_shared<InferService>(ServiceOptions(), as_outbox(outbox), nullptr,
                                                      ServiceSeries());
  const auto [fd, port] = listener();
  ServerOptions options;
  options.listeners = {fd};
  Server server(options, service, outbox);
  std::vector<std::unique_ptr<Caller>> callers;
  for (int i = 0; i < 600; ++i) callers.push_back(std::make_unique<Caller>(port));
  server.drain();
  server.start();
  int asked = 0;
  for (const auto& caller : callers) {
    caller->until_closed();
    asked += !caller->http.goaways.empty();
  }
  CHECK(asked == 600);
}

TEST_CASE("of 500 connections each call that was on its way as draining began is answered") {
  Lane lane;
  std::vector<std::unique_ptr<Caller>> callers;
  for (int number = 0; number < 500; ++number) {
    callers.push_back(std::make_unique<Caller>(lane.port));
    callers.back()->send();
  }
  REQUIRE(callers.back()->until([&] { return lane.server->connections() == 500; }));
  std::thread drains;
  int answered = 0;
  for (int number = 0; number < 500; ++number) {
    if (number == 300) drains = std::thread([&] { lane.server->drain(); });
    Caller& caller = *callers[number];
    const std::int32_t id = caller.http.infer(times_request({static_cast<float>(number)}));
    if (number >= 200 && number < 300) {
      caller.send();  // in flight, as draining begins
    } else if (caller.until_ended(id) && number < 250) {
      ++answered;
    }
  }
  drains.join();
  CHECK(answered == 200);
  // Who is asked to go and begins no call is waited for no longer than it takes to say so.
  for (int number = 0; number < 500; ++number) {
    Caller& caller = *callers[number];
    CHECK(caller.until_closed());
    CHECK_FALSE(caller.http.goaways.empty());
    if (number >= 300) continue;  // whether these begin before they hear of it is chance
    REQUIRE(caller.http[1].ended);
    CHECK(last_floats(caller.http[1].body, 1) == std::vector<float>{3.0F * number});
  }
  CHECK(lane.server->wait_until_idle(kPatience));
  CHECK(eventually([&] { return lane.server->connections() == 0; }));
}

TEST_CASE("stopping closes what is left, whatever it waits for") {
  Lane lane;
  lane.model->hold();
  Caller busy(lane.port);
  Caller idle(lane.port);
  busy.http.infer(times_request({5}));
  busy.send();
  REQUIRE(lane.model->entered.acquire());
  REQUIRE(idle.until([&] { return lane.server->connections() == 2; }));
  lane.server->stop();
  CHECK(busy.until_closed());
  CHECK(idle.until_closed());
  CHECK(busy.http.last_streams == std::vector<std::int32_t>{1});
  CHECK(idle.http.last_streams == std::vector<std::int32_t>{0});
  CHECK_FALSE(connected(lane.port));
  lane.model->release();
}

TEST_CASE("a server that was never started can be stopped") {
  const auto outbox = make_outbox();
  auto service = std::make_shared<InferService>(ServiceOptions(), as_outbox(outbox), nullptr,
                                                ServiceSeries());
  const auto [fd, port] = listener();
  ServerOptions options;
  options.listeners = {fd};
  Server server(options, service, outbox);
  CHECK(server.wait_until_idle(1));
  server.drain();
  server.stop();
  CHECK_FALSE(connected(port));
}

TEST_CASE("a path too long for a Unix socket is refused") {
  const auto outbox = make_outbox();
  auto service = std::make_shared<InferService>(ServiceOptions(), as_outbox(outbox), nullptr,
                                                ServiceSeries());
  ServerOptions options;
  options.upstream_path = std::string(200, 'p');
  CHECK_THROWS_WITH(Server(options, service, outbox),
                    (std::string(200, 'p') + ": too long for a Unix socket").c_str());
}

TEST_CASE("an agenda tells who is due, each once, whatever was said before") {
  Agenda agenda;
  agenda.move(1, never, 5);
  agenda.move(2, never, 3);
  agenda.move(1, 5, 2);
  CHECK(agenda.next() == 2);
  CHECK_FALSE(agenda.due(1.9));
  CHECK(agenda.due(2) == 1);
  agenda.move(1, 2, never);
  CHECK(agenda.due(10) == 2);
  agenda.move(2, 3, 20);
  CHECK(agenda.next() == 20);
}

}  // namespace
}  // namespace lane
