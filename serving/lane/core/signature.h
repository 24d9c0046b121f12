// Signature: what one served version takes and gives, and the checks of a request against it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "layout.h"
#include "message.h"
#include "status.h"

namespace lane {

struct TensorSpec {
  std::string name;
  std::string datatype;
  std::vector<std::int64_t> shape;  // with the rows, first; -1 is variable
};

struct Signature {
  std::string name;
  std::string version;
  std::vector<TensorSpec> inputs;
  std::vector<TensorSpec> outputs;
  std::vector<std::string> labels;  // class names, may be empty
};

// A request that can be run.
struct Checked {
  LayoutPtr layout;
  std::int64_t rows = 0;
  std::vector<const std::byte*> inputs;  // in the layout's order, in the message's bytes
  std::vector<int> outputs;  // indices of the signature's; all of them where none is named
};

// What the lane leaves to grpcio: typed contents, BYTES, classification, an error whose text the
// lane cannot be sure to put as Python does.
struct PassOn {};

// Keeps the layouts of one version, so that equal ones are one: requests that can share a batch
// have the same pointer. Beyond 64 of them, one that nobody uses makes room.
class Checker {
 public:
  explicit Checker(Signature signature);
  const Signature& signature() const { return signature_; }
  // serving/tensors.py's checks, in its order, with its texts. Of one thread.
  std::variant<Checked, Refusal, PassOn> check(const InferRequest& request);

 private:
  using Problem = std::optional<std::variant<Refusal, PassOn>>;

  Problem choose_outputs(const InferRequest& request, Checked& checked) const;
  Problem match_inputs(const InferRequest& request);
  Problem read_inputs(const InferRequest& request, Checked& checked) const;
  LayoutPtr layout_of(const InferRequest& request);
  bool is_of(const Layout& layout, const InferRequest& request) const;
  LayoutPtr keep(LayoutPtr layout);

  Signature signature_;
  bool native_;                            // the lane can take what the signature says
  std::vector<std::size_t> element_bytes_;  // of each input
  std::vector<LayoutPtr> layouts_;
  std::size_t next_ = 0;            // of the layouts, who is asked first to make room
  std::vector<std::size_t> order_;  // which of the signature's each of a request's inputs is
};

}  // namespace lane
