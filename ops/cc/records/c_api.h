// Every C function of the records library. ops/record_library.py calls them through ctypes; tests/ops/
// test_record_library.py holds the types that it spells against the declarations below.
//
// Every function but the first two returns a millrace::records::CallStatus; its results go to its last pointers, which
// hold nothing of use unless the status is kDone. No exception leaves a function (c_guard.h). Arrays are contiguous and
// as long as the comment says. What an ArrowArray or ArrowSchema "is released" means: the function calls its `release`,
// whatever the status.
#ifndef MILLRACE_RECORDS_C_API_H_
#define MILLRACE_RECORDS_C_API_H_

#include <cstdint>

#define MILLRACE_C_API extern "C" __attribute__((visibility("default")))

struct ArrowArray;
struct ArrowSchema;

namespace millrace::records {

class ItemPool;

enum class CallStatus : int32_t {
  kDone = 0,
  kOutOfMemory = 1,
  kUnsupported = 2,  // a column of a type, or a size, that the function does not take
  kOutOfRange = 3,   // a number that names nothing: a row, a format
  kFailed = 4,       // any other exception: a bug
};

}  // namespace millrace::records

// Grows with every incompatible change of a function of this library: Python refuses a library of another version.
MILLRACE_C_API int32_t millrace_records_version();

// A processor feature that the library was compiled for and this machine has not; null when it has all.
MILLRACE_C_API const char* millrace_records_lacks();

// Frames: wire/framing.h.

// Scans whole frames from `position` on, until the buffer ends, a frame is wrong or `capacity` frames were found.
//
//   flags: FramingFlags
//   starts, lengths, positions, keys [capacity]: of each frame its payload's start and length, where the frame begins,
//     and its data source key
//   count: number of frames; end: where the scan stopped; next: where the frame there ends, -1 where nobody can tell;
//   frame_status: a FrameStatus, what is wrong with that frame
MILLRACE_C_API int32_t millrace_split_frames(const uint8_t* data, int64_t size, int64_t position, int32_t flags,
                                             int64_t max_record_bytes, int64_t capacity, int64_t* starts,
                                             int64_t* lengths, int64_t* positions, uint32_t* keys, int64_t* count,
                                             int64_t* end, int64_t* next, int32_t* frame_status);

// Scans the values of a binary column, each of which holds frames: value i is data[offsets[i], offsets[i + 1]).
//
// As `millrace_split_frames`, with the value of each frame in `rows` [capacity], and with what is wrong: `bad_rows`,
// `bad_starts`, `bad_lengths` (in `data`) and `bad_status` [capacity], `*bad` of them. A bad frame whose end nobody can
// tell takes the rest of its value. At most `frames_per_value` frames are taken of a value; what follows them is one
// bad frame of status kFull. `*count` is -1 when `capacity` is too small.
MILLRACE_C_API int32_t millrace_split_values(const uint8_t* data, const int32_t* offsets, int64_t values, int32_t flags,
                                             int64_t max_record_bytes, int64_t frames_per_value, int64_t capacity,
                                             int64_t* starts, int64_t* lengths, int64_t* rows, uint32_t* keys,
                                             int64_t* bad_rows, int64_t* bad_starts, int64_t* bad_lengths,
                                             int32_t* bad_status, int64_t* count, int64_t* bad);

// Copies the `count` ranges of `data` one after the other into `out`; `offsets` gets count + 1 positions in it.
MILLRACE_C_API int32_t millrace_copy_ranges(const uint8_t* data, const int64_t* starts, const int64_t* lengths,
                                            int64_t count, uint8_t* out, int32_t* offsets);

// Finds the first position from `position` on where a frame begins: a TFRecord by its checksums, a line after the next
// line feed. Other framings cannot tell.
//
//   is_last: 1 when no bytes follow the buffer, so that a position which more bytes would have to decide is passed over
//   found: the position, -1 when there is none; sure: 0 where more bytes have to decide it
MILLRACE_C_API int32_t millrace_find_frame(const uint8_t* data, int64_t size, int64_t position, int32_t flags,
                                           int64_t max_record_bytes, int32_t is_last, int64_t* found, int32_t* sure);

// Writes a frame around each value of a binary column: `prefix`, uint64 length, payload; as TFRecords, length and
// payload with their checksums; as lines, the payload and a line feed. `out` has room for all.
MILLRACE_C_API int32_t millrace_join_frames(const uint8_t* data, const int32_t* offsets, int64_t values, int32_t flags,
                                            const uint8_t* prefix, int64_t prefix_bytes, uint8_t* out);

// Records and batches.

// Decodes the records of `block`, a struct array as BlockReader reads it (arrow/arrow_reader.h), which is released.
//
//   format: a Format; pruning: a Pruning
//   line_id_fields: one bit per field, or -1 for those that occur
//   wanted: schema of the features to decode, or null for all; kUnsupported when it has a type or name that no feature
//     can have
//   rows: gets a record batch; refused: gets a batch of row in the block, reason and detail
MILLRACE_C_API int32_t millrace_decode_records(int32_t format, int32_t fids_as_is, int32_t pruning,
                                               int64_t line_id_fields, int64_t row_stride, const ArrowSchema* wanted,
                                               ArrowArray* block, ArrowSchema* rows_schema, ArrowArray* rows,
                                               ArrowSchema* refused_schema, ArrowArray* refused);

// Encodes a record batch, which is released, into a batch of one binary column. kUnsupported when a column has a type
// that the format has not; kOutOfMemory when the records take more than 2 GiB.
//
//   format: a Format
//   rows_per_record: of an ExampleBatch at most
MILLRACE_C_API int32_t millrace_encode_records(int32_t format, int64_t rows_per_record, const ArrowSchema* schema,
                                               ArrowArray* batch, ArrowSchema* records_schema, ArrowArray* records);

// Reads the objects of a binary array, which is released. kUnsupported when the schema has a type that is not read.
//
//   schema: of the fields to read
//   max_bytes: larger values are not read
//   is_plain [values]: 1 where the value became a row; rows: gets a struct array, one row per plain value
MILLRACE_C_API int32_t millrace_read_json(const ArrowSchema* schema, ArrowArray* values, int64_t max_bytes,
                                          uint8_t* is_plain, ArrowArray* rows);

// Rows of batches.

// Takes rows of `batches`, one or more of one schema, numbered through. All are released, the schema as well.
// kUnsupported where a column has a type that is not taken here (rows/take_rows.h).
MILLRACE_C_API int32_t millrace_take_rows(ArrowSchema* schema, ArrowArray* const* batches, int64_t batch_count,
                                          const int64_t* rows, int64_t count, ArrowArray* taken);

// Sets bit k of found[row] where a column of `batch`, which is released, has wanted[k] in the row. All columns are
// lists of int64; `count` is at most 8, the bits of `found`.
MILLRACE_C_API int32_t millrace_find_fids(ArrowArray* batch, const int64_t* wanted, int32_t count, uint8_t* found);

// Numbers the fids of each (feature, shard): rows/shard_fids.h.
//
//   splits [features + 1]: feature f has fids[splits[f]] up to fids[splits[f + 1]]
//   places [fids], counts [features x shards]: results
MILLRACE_C_API int32_t millrace_number_fids(const int64_t* fids, const int64_t* splits, int32_t features,
                                            int64_t shards, int32_t unique, uint64_t* places, int64_t* counts);

// Moves the fids to their cells and turns `places` into offsets: rows/shard_fids.h.
//
//   starts, first_offsets [features x shards]; steps [features]; places, sharded [fids]
MILLRACE_C_API int32_t millrace_place_fids(const int64_t* fids, const int64_t* splits, int32_t features, int64_t shards,
                                           const int64_t* starts, const uint64_t* first_offsets, const int64_t* steps,
                                           uint64_t* places, int64_t* sharded);

// Hashes `count` strings by SipHash-2-4: string i is bytes [offsets[i], offsets[i + 1]) of `data`. `key`: 16 bytes.
MILLRACE_C_API int32_t millrace_siphash24(const int64_t* offsets, const uint8_t* data, int64_t count,
                                          const uint8_t* key, uint64_t* hashes);

// Item pools: rows/item_pool.h. A pool is used by one thread at a time.

MILLRACE_C_API int32_t millrace_item_pool_new(int64_t start_num, int64_t max_items, int64_t max_channels,
                                              millrace::records::ItemPool** pool);
MILLRACE_C_API int32_t millrace_item_pool_delete(millrace::records::ItemPool* pool);
MILLRACE_C_API int32_t millrace_item_pool_size(const millrace::records::ItemPool* pool, int64_t* size);

// ItemPool::Process: the arrays up to `random` are those of ItemPool::Rows [count], `times` to `allow_own` the numbers
// of ItemPool::DrawRule, and those from `rows` to `easy` those of ItemPool::Draws, each with room for as many as `draw`
// is set in, times `times`.
//
//   pushed [count]: an ItemPool::Pushed each
//   draws: how many were drawn
MILLRACE_C_API int32_t millrace_item_pool_process(millrace::records::ItemPool* pool, int64_t count,
                                                  const uint64_t* keys, const int64_t* channels, const uint8_t* push,
                                                  const uint8_t* draw, const uint64_t* random, int64_t times,
                                                  double easy_ratio, int32_t allow_own, uint8_t* pushed, int64_t* rows,
                                                  int64_t* positions, double* recency, int64_t* drawn, uint8_t* easy,
                                                  int64_t* draws);

// ItemPool::Add of `count` items, in order; `what` [count] gets an ItemPool::Pushed each.
MILLRACE_C_API int32_t millrace_item_pool_add(millrace::records::ItemPool* pool, int64_t count, const int64_t* channels,
                                              const uint64_t* keys, const int64_t* pushed, const int64_t* drawn,
                                              uint8_t* what);

// ItemPool::Export: arrays as long as the pool's size.
MILLRACE_C_API int32_t millrace_item_pool_export(const millrace::records::ItemPool* pool, int64_t* channels,
                                                 uint64_t* keys, int64_t* positions, int64_t* pushed, int64_t* drawn);

// ItemPool::Renumber.
MILLRACE_C_API int32_t millrace_item_pool_renumber(millrace::records::ItemPool* pool);

#endif  // MILLRACE_RECORDS_C_API_H_
