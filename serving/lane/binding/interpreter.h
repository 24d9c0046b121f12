// Python's lock, for threads of C++: who holds it, and what is let go under it.
//
// Two rules keep the lane free of deadlocks: whoever comes from Python lets the lock go before he
// takes one of the lane's, and nobody waits for anything while he holds it.
#pragma once

#include <pybind11/pybind11.h>
#include <unistd.h>

#include <cxxabi.h>

#include <memory>
#include <optional>
#include <utility>

namespace lane {

// Python is ending, or has: threads of C++ may touch nothing of it.
inline bool python_is_ending() {
#if PY_VERSION_HEX >= 0x030D0000
  return !Py_IsInitialized() || Py_IsFinalizing();
#else
  return !Py_IsInitialized() || _Py_IsFinalizing();
#endif
}

// Enters Python. Where that ends meanwhile, until 3.13 it unwinds the thread, as pthread_exit does;
// here it waits for the process's end instead, as from 3.14 on: what is unwound would be let go
// without Python's lock.
template <typename Function>
auto entering_python(Function function) {
#ifdef __GLIBCXX__
  try {
    return function();
  } catch (const abi::__forced_unwind&) {
    while (true) ::pause();
  }
#else
  return function();
#endif
}

// A call of a function of Python, for threads of C++.
template <typename... Arguments>
pybind11::object call(const pybind11::object& function, Arguments&&... arguments) {
  const pybind11::tuple given = pybind11::make_tuple(std::forward<Arguments>(arguments)...);
  PyObject* result =
      entering_python([&] { return PyObject_CallObject(function.ptr(), given.ptr()); });
  if (result == nullptr) throw pybind11::error_already_set();
  return pybind11::reinterpret_steal<pybind11::object>(result);
}

// A thread's state of Python, kept until the thread ends: to make it anew each time that the lock
// is taken costs more than all else that is done under the lock.
class ThreadState {
 public:
  ThreadState() {
    if (PyGILState_GetThisThreadState() != nullptr) return;  // a thread of Python
    lock_ = PyGILState_Ensure();
    state_ = PyEval_SaveThread();
  }
  ThreadState(const ThreadState&) = delete;
  ThreadState& operator=(const ThreadState&) = delete;
  ~ThreadState() {
    if (state_ == nullptr || python_is_ending()) return;
    entering_python([this] { PyEval_RestoreThread(state_); });
    PyGILState_Release(lock_);
  }

  static void keep() { static thread_local const ThreadState kept; }

 private:
  PyGILState_STATE lock_ = PyGILState_UNLOCKED;
  PyThreadState* state_ = nullptr;
};

// Holds Python's lock, on any thread; may be nested.
class WithPython {
 public:
  WithPython() {
    entering_python([this] {
      ThreadState::keep();
      lock_.emplace();
    });
  }

 private:
  std::optional<pybind11::gil_scoped_acquire> lock_;
};

// Lets Python's lock go, of a thread that holds it. As pybind11's gil_scoped_release, but that it
// may end while Python does.
class WithoutPython {
 public:
  WithoutPython() : state_(PyEval_SaveThread()) {}
  ~WithoutPython() {
    entering_python([this] { PyEval_RestoreThread(state_); });
  }
  WithoutPython(const WithoutPython&) = delete;
  WithoutPython& operator=(const WithoutPython&) = delete;

 private:
  PyThreadState* const state_;
};

// Owns something that waits for threads which may need Python's lock, such as a batcher, wherever
// its last owner is; where Python is ending, so that they never end, it is left to the process's
// end.
struct DropWithoutPython {
  template <typename T>
  void operator()(T* value) const {
    if (python_is_ending()) return;
    std::unique_ptr<T> dropped(value);
    if (!PyGILState_Check()) return;
    const WithoutPython others_run;
    dropped.reset();
  }
};

template <typename T, typename... Arguments>
std::shared_ptr<T> shared_without_python(Arguments&&... arguments) {
  using Owned = std::unique_ptr<T, DropWithoutPython>;
  return Owned(std::make_unique<T>(std::forward<Arguments>(arguments)...).release());
}

// Owns something that refers to Python, wherever its last owner is; where Python is ending, it is
// left to the process's end.
struct DropWithPython {
  template <typename T>
  void operator()(T* value) const {
    if (python_is_ending()) return;
    const WithPython python;
    const std::unique_ptr<T> dropped(value);
  }
};

template <typename T>
using OfPython = std::unique_ptr<T, DropWithPython>;

template <typename T, typename... Arguments>
OfPython<T> of_python(Arguments&&... arguments) {
  return OfPython<T>(std::make_unique<T>(std::forward<Arguments>(arguments)...).release());
}

// The same, of several owners.
template <typename T, typename... Arguments>
std::shared_ptr<T> shared_of_python(Arguments&&... arguments) {
  return std::shared_ptr<T>(of_python<T>(std::forward<Arguments>(arguments)...));
}

}  // namespace lane
