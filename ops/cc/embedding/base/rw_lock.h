// Reader/writer lock that lets a waiting writer in before new readers.
#ifndef MILLRACE_EMBEDDING_RW_LOCK_H_
#define MILLRACE_EMBEDDING_RW_LOCK_H_

#include <pthread.h>

namespace millrace {

// For std::unique_lock and std::shared_lock. std::shared_mutex prefers readers: a server's lookups, which never cease,
// would keep its deltas out.
class RwLock {
 public:
  RwLock() {
    pthread_rwlockattr_t attributes;
    pthread_rwlockattr_init(&attributes);
#ifdef __GLIBC__
    pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
#endif
    pthread_rwlock_init(&lock_, &attributes);
    pthread_rwlockattr_destroy(&attributes);
  }
  ~RwLock() { pthread_rwlock_destroy(&lock_); }
  RwLock(const RwLock&) = delete;
  RwLock& operator=(const RwLock&) = delete;

  void lock() { pthread_rwlock_wrlock(&lock_); }
  void unlock() { pthread_rwlock_unlock(&lock_); }
  void lock_shared() { pthread_rwlock_rdlock(&lock_); }
  void unlock_shared() { pthread_rwlock_unlock(&lock_); }

 private:
  pthread_rwlock_t lock_;
};

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_RW_LOCK_H_
