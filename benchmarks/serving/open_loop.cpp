// Open loop: asks a gRPC server at given times, however slow its answers come, and notes what came.
//
//   open_loop PORT PATH BODY DUE CONNECTIONS PATIENCE OUTCOMES SAMPLES
//
// Owns its connections and the clock. BODY is a file with one framed message, asked over and over;
// DUE has the times to ask at, float64 seconds from the start. What could not be sent PATIENCE
// seconds after it was due never is, and counts as DEADLINE_EXCEEDED: so a client of gRPC gives up
// a call that the server's windows, or its limit of streams, keep back. Into OUTCOMES go three
// float64 for each request: when it was sent, when its answer was there, and its gRPC status (or
// -1: none came, not even a refusal). Into SAMPLES goes one answered message in kSampled, with its
// length (uint32) before it. It spins on its core, so that it is late only where it cannot keep up.
// What the server's headers say is nghttp2's to decode; frames, all small, are written and read
// here.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <nghttp2/nghttp2.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "../../serving/lane/core/descriptor.h"

namespace {

constexpr std::size_t kFrameHeader = 9;
constexpr std::size_t kSampled = 101;  // one answer in so many is kept; prime: of each connection
constexpr double kLastAnswers = 5.0;   // seconds after the last request
constexpr double kSpin = 0.002;        // seconds before a request is due in which nothing sleeps
constexpr std::uint32_t kLargest = 0x7fffffff;
constexpr std::int64_t kDefaultWindow = 65535;
constexpr std::size_t kMostStreams = 100;  // until the server says how many
constexpr double kDeadlineExceeded = 4;    // gRPC's status

struct Outcome {
  double sent = NAN, ended = NAN, status = -1;
};

// One request's number, and what has come of its answer.
struct Stream {
  std::uint32_t number = 0;
  bool open = false;
  std::string message;  // of those that are sampled
};

std::uint32_t big_endian(std::string_view bytes) {
  std::uint32_t value = 0;
  for (const char byte : bytes) value = value << 8 | static_cast<std::uint8_t>(byte);
  return value;
}

std::string bytes_of(std::uint32_t value, int count) {
  std::string bytes;
  for (int shift = 8 * (count - 1); shift >= 0; shift -= 8) {
    bytes += static_cast<char>(value >> shift & 0xff);
  }
  return bytes;
}

std::string frame(int kind, int flags, std::uint32_t stream, std::string_view payload) {
  std::string whole = bytes_of(static_cast<std::uint32_t>(payload.size()), 3);
  whole += static_cast<char>(kind);
  whole += static_cast<char>(flags);
  return whole + bytes_of(stream, 4) + std::string(payload);
}

// HPACK (RFC 7541): a string without Huffman's code.
std::string text(std::string_view value) {
  if (value.size() > 126) throw std::runtime_error("a header is too long");
  return static_cast<char>(value.size()) + std::string(value);
}

// :method POST, :scheme http, and four fields that enter the server's table; then those by index.
std::string first_headers(const std::string& path, const std::string& authority) {
  return "\x83\x86\x44" + text(path) + "\x41" + text(authority) + "\x5f" +
         text("application/grpc") + "\x40" + text("te") + text("trailers");
}
constexpr std::string_view kLaterHeaders = "\x83\x86\xc1\xc0\xbf\xbe";

lane::Descriptor connected(int port) {
  lane::Descriptor client(socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(client.get(), reinterpret_cast<sockaddr*>(&address), sizeof address)) {
    throw std::runtime_error(std::string("connect: ") + std::strerror(errno));
  }
  const int on = 1;
  setsockopt(client.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  fcntl(client.get(), F_SETFL, O_NONBLOCK);
  return client;
}

using Inflater = std::unique_ptr<nghttp2_hd_inflater, decltype(&nghttp2_hd_inflate_del)>;

Inflater new_inflater() {
  nghttp2_hd_inflater* inflater = nullptr;
  if (nghttp2_hd_inflate_new(&inflater)) throw std::bad_alloc();
  return {inflater, nghttp2_hd_inflate_del};
}

// The preface, and windows of ours that never fill.
std::string opening() {
  const std::string window = bytes_of(NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 2);
  return NGHTTP2_CLIENT_MAGIC + frame(NGHTTP2_SETTINGS, 0, 0, window + bytes_of(kLargest, 4)) +
         frame(NGHTTP2_WINDOW_UPDATE, 0, 0, bytes_of(kLargest - kDefaultWindow, 4));
}

// Who hears that a request ended.
class Ends {
 public:
  virtual ~Ends() = default;
  virtual void ended(Stream& stream, int status) = 0;
  virtual void given_up(std::uint32_t number) = 0;
};

// One connection: requests go out in order, as the server's windows and its limit allow.
class Connection {
 public:
  // `most` requests, for which there is memory from the start: to grow would make it late.
  Connection(int port, std::string path, std::string body, std::size_t most, Ends& ends)
      : path_(std::move(path)), body_(std::move(body)), ends_(ends), socket_(connected(port)) {
    streams_.reserve(most);
    authority_ = "127.0.0.1:" + std::to_string(port);
    if (body_.size() > 16384) throw std::runtime_error("the message does not fit into one frame");
  }

  int descriptor() const { return socket_.get(); }

  void send(std::uint32_t number) {
    waiting_.push_back(number);
    fill();
  }

  // Requests below that number are not sent any more.
  void give_up_before(std::uint32_t number) {
    for (; !waiting_.empty() && waiting_.front() < number; waiting_.pop_front()) {
      ends_.given_up(waiting_.front());
    }
  }

  // Writes what the socket takes.
  void flush() {
    if (out_.empty()) return;
    const ssize_t written = ::send(socket_.get(), out_.data(), out_.size(), MSG_NOSIGNAL);
    if (written > 0) out_.erase(0, static_cast<std::size_t>(written));
    if (written < 0 && errno != EAGAIN) throw std::runtime_error(std::strerror(errno));
  }

  // Reads once; false where there was nothing.
  bool receive() {
    char chunk[1 << 16];
    const ssize_t count = recv(socket_.get(), chunk, sizeof chunk, 0);
    if (count < 0 && errno == EAGAIN) return false;
    if (count <= 0) throw std::runtime_error("the server closed the connection");
    in_.append(chunk, static_cast<std::size_t>(count));
    take_frames();
    fill();
    return true;
  }

 private:
  void fill() {
    while (!waiting_.empty() && open_ < most_ &&
           window_ >= static_cast<std::int64_t>(body_.size())) {
      const auto id = static_cast<std::uint32_t>(2 * streams_.size() + 1);
      const std::string first = id == 1 ? first_headers(path_, authority_) : "";
      out_ += frame(NGHTTP2_HEADERS, NGHTTP2_FLAG_END_HEADERS, id, id == 1 ? first : kLaterHeaders);
      out_ += frame(NGHTTP2_DATA, NGHTTP2_FLAG_END_STREAM, id, body_);
      streams_.push_back({waiting_.front(), true, {}});
      waiting_.pop_front();
      window_ -= static_cast<std::int64_t>(body_.size());
      ++open_;
    }
  }

  void take_frames() {
    std::string_view left = in_;
    while (left.size() >= kFrameHeader) {
      const std::size_t length = big_endian(left.substr(0, 3));
      if (left.size() < kFrameHeader + length) break;
      const std::uint32_t id = big_endian(left.substr(5, 4)) & kLargest;
      take(left[3], left[4], id, left.substr(kFrameHeader, length));
      left.remove_prefix(kFrameHeader + length);
    }
    in_.erase(0, in_.size() - left.size());
  }

  void take(int kind, int flags, std::uint32_t id, std::string_view payload) {
    if (kind == NGHTTP2_HEADERS) return take_headers(flags, id, payload);
    if (kind == NGHTTP2_DATA) return take_data(flags, id, payload);
    if (kind == NGHTTP2_RST_STREAM) return end(id, -1);  // after the end it says nothing new
    if (kind == NGHTTP2_GOAWAY) throw std::runtime_error("the server said GOAWAY");
    if (kind == NGHTTP2_WINDOW_UPDATE && id == 0) window_ += big_endian(payload);
    if (flags & NGHTTP2_FLAG_ACK) return;
    if (kind == NGHTTP2_SETTINGS) take_settings(payload);
    if (kind == NGHTTP2_PING) out_ += frame(NGHTTP2_PING, NGHTTP2_FLAG_ACK, 0, payload);
  }

  void take_settings(std::string_view payload) {
    for (; payload.size() >= 6; payload.remove_prefix(6)) {
      if (big_endian(payload.substr(0, 2)) == NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS) {
        most_ = big_endian(payload.substr(2, 4));
      }
    }
    out_ += frame(NGHTTP2_SETTINGS, NGHTTP2_FLAG_ACK, 0, "");
  }

  void take_headers(int flags, std::uint32_t id, std::string_view block) {
    constexpr int unknown = NGHTTP2_FLAG_PADDED | NGHTTP2_FLAG_PRIORITY;
    if (flags & unknown || !(flags & NGHTTP2_FLAG_END_HEADERS)) {
      throw std::runtime_error("headers in a form that this does not read");
    }
    const int status = grpc_status(block);
    if (flags & NGHTTP2_FLAG_END_STREAM) end(id, status);
  }

  // Every block is decoded, so that the table stays the server's.
  int grpc_status(std::string_view block) {
    int status = -1, ready = 0;
    auto* at = reinterpret_cast<std::uint8_t*>(const_cast<char*>(block.data()));
    std::size_t left = block.size();
    while (!(ready & NGHTTP2_HD_INFLATE_FINAL)) {
      nghttp2_nv field;
      const ssize_t used = nghttp2_hd_inflate_hd2(inflater_.get(), &field, &ready, at, left, 1);
      if (used < 0) throw std::runtime_error("headers that cannot be decoded");
      at += used;
      left -= static_cast<std::size_t>(used);
      if (!(ready & NGHTTP2_HD_INFLATE_EMIT)) continue;
      const std::string_view name(reinterpret_cast<char*>(field.name), field.namelen);
      if (name == "grpc-status") status = std::atoi(reinterpret_cast<char*>(field.value));
    }
    nghttp2_hd_inflate_end_headers(inflater_.get());
    return status;
  }

  void take_data(int flags, std::uint32_t id, std::string_view payload) {
    if (flags & NGHTTP2_FLAG_PADDED) throw std::runtime_error("padding, which this does not read");
    Stream& stream = streams_.at(id / 2);
    if (stream.number % kSampled == 0) stream.message += payload;
    if (flags & NGHTTP2_FLAG_END_STREAM) end(id, -1);
  }

  void end(std::uint32_t id, int status) {
    Stream& stream = streams_.at(id / 2);
    if (!stream.open) return;
    stream.open = false;
    --open_;
    ends_.ended(stream, status);
    stream.message = {};
  }

  const std::string path_, body_;
  Ends& ends_;
  lane::Descriptor socket_;
  Inflater inflater_ = new_inflater();
  std::string authority_, out_ = opening(), in_;
  std::int64_t window_ = kDefaultWindow;
  std::size_t most_ = kMostStreams, open_ = 0;
  std::deque<std::uint32_t> waiting_;  // numbers of requests that may not go out yet
  std::vector<Stream> streams_;        // by stream / 2
};

std::string content(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(std::string("cannot read ") + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

void put(const std::string& path, std::string_view bytes) {
  std::ofstream file(path, std::ios::binary);
  if (!(file << bytes).flush()) throw std::runtime_error("cannot write " + path);
}

// All connections and the clock.
class Loop : public Ends {
 public:
  Loop(std::vector<double> due, double patience)
      : due_(std::move(due)), patience_(patience), outcomes_(due_.size()) {}

  void connect(int port, const std::string& path, const std::string& body, std::size_t count) {
    const std::size_t each = due_.size() / count + 1;
    while (connections_.size() < count) {
      connections_.push_back(std::make_unique<Connection>(port, path, body, each, *this));
    }
  }

  // Until all is sent and answered, or the last answers take too long.
  void run() {
    const double over = due_.back() + kLastAnswers;
    while (open_ || sent_ < due_.size()) {
      const double now = seconds();
      if (now > over) break;
      send_due(now);
      give_up(now);
      for (const auto& each : connections_) each->flush();
      if (!receive()) wait(now);
    }
  }

  void ended(Stream& stream, int status) override {
    Outcome& outcome = outcomes_.at(stream.number);
    outcome.ended = received_;
    outcome.status = status;
    --open_;
    if (status || stream.number % kSampled) return;  // one that is empty is kept as well
    const auto length = static_cast<std::uint32_t>(stream.message.size());
    samples_.append(reinterpret_cast<const char*>(&length), sizeof length);
    samples_ += stream.message;
  }

  void given_up(std::uint32_t number) override {
    outcomes_.at(number) = {NAN, due_.at(number) + patience_, kDeadlineExceeded};
    --open_;
  }

  void write(const std::string& outcomes, const std::string& samples) const {
    const auto* bytes = reinterpret_cast<const char*>(outcomes_.data());
    put(outcomes, {bytes, outcomes_.size() * sizeof(Outcome)});
    put(samples, samples_);
  }

 private:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count();
  }

  void send_due(double now) {
    for (; sent_ < due_.size() && due_[sent_] <= now; ++sent_, ++open_) {
      outcomes_[sent_].sent = now;
      connections_[sent_ % connections_.size()]->send(static_cast<std::uint32_t>(sent_));
    }
  }

  // Numbers are in the order in which requests are due.
  void give_up(double now) {
    const std::size_t before = given_up_;
    while (given_up_ < sent_ && due_[given_up_] + patience_ <= now) ++given_up_;
    if (given_up_ == before) return;
    const auto number = static_cast<std::uint32_t>(given_up_);
    for (const auto& each : connections_) each->give_up_before(number);
  }

  bool receive() {
    bool any = false;
    for (const auto& each : connections_) {
      received_ = seconds();
      any |= each->receive();
    }
    return any;
  }

  // Sleeps only where nothing is due soon.
  void wait(double now) {
    if (sent_ < due_.size() && due_[sent_] - now < kSpin) return;
    std::vector<pollfd> polled;
    for (const auto& each : connections_) polled.push_back({each->descriptor(), POLLIN, 0});
    poll(polled.data(), polled.size(), 1);
  }

  const std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
  const std::vector<double> due_;
  const double patience_;
  std::vector<Outcome> outcomes_;
  std::vector<std::unique_ptr<Connection>> connections_;
  std::size_t sent_ = 0, open_ = 0;
  std::size_t given_up_ = 0;  // those before are not to be sent any more
  double received_ = 0;  // when what is being read was there
  std::string samples_;
};

std::vector<double> times(const std::string& bytes) {
  std::vector<double> found(bytes.size() / sizeof(double));
  std::memcpy(found.data(), bytes.data(), found.size() * sizeof(double));
  if (found.empty()) throw std::runtime_error("nothing is due");
  return found;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 9) {
    std::fprintf(stderr, "open_loop PORT PATH BODY DUE CONNECTIONS PATIENCE OUTCOMES SAMPLES\n");
    return 2;
  }
  try {
    Loop loop(times(content(arguments[4])), std::atof(arguments[6]));
    const auto connections = static_cast<std::size_t>(std::max(1, std::atoi(arguments[5])));
    loop.connect(std::atoi(arguments[1]), arguments[2], content(arguments[3]), connections);
    loop.run();
    loop.write(arguments[7], arguments[8]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "open_loop: %s\n", error.what());
    return 1;
  }
  return 0;
}
