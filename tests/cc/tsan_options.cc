// A cut holds the locks of all shards of all tables, more than ThreadSanitizer's deadlock detector can follow.
#ifdef __SANITIZE_THREAD__
extern "C" const char* __tsan_default_options() { return "detect_deadlocks=0"; }
#endif
