// Where entries lie, and which shard gets them back.
#include "ops/cc/embedding/table/entry_arena.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace millrace {
namespace {

TEST(EntryArena, EntriesNeverMoveNorOverlapWhateverTheirSize) {
  for (const int64_t bytes : {1, 4, 9, 64, 76, 4096, 100'000}) {
    EntryArena arena(bytes);
    ShardEntries shards[] = {ShardEntries(&arena), ShardEntries(&arena)};
    std::vector<char*> entries;
    std::set<uint32_t> handles;
    for (int i = 0; i < 3000; ++i) {
      const uint32_t handle = shards[i % 2].Allocate();
      ASSERT_TRUE(handles.insert(handle).second);
      ASSERT_LT(handle, arena.end());
      entries.push_back(arena.At(handle));
      ASSERT_EQ(reinterpret_cast<uintptr_t>(entries.back()) % 4, 0u);
      entries.back()[0] = entries.back()[bytes - 1] = static_cast<char>(i % 251);
    }
    for (int i = 0; i < 3000; ++i) {
      for (const int64_t at : {int64_t{0}, bytes - 1}) ASSERT_EQ(entries[i][at], static_cast<char>(i % 251));
    }
  }
}

TEST(EntryArena, LongEntriesBeginAtCacheLinesWhereThatCostsLittle) {
  EXPECT_EQ(EntryArena(4).stride(), 4);
  EXPECT_EQ(EntryArena(9).stride(), 12);
  EXPECT_EQ(EntryArena(76).stride(), 80);
  EXPECT_EQ(EntryArena(250).stride(), 256);
}

TEST(EntryArena, SlabsShareNoWordOf64Bits) {
  for (const int64_t bytes : {1, 64, 100'000}) {
    EntryArena arena(bytes);
    EXPECT_EQ(arena.slab_entries() % 64, 0u);
    arena.TakeSlab();
    EXPECT_EQ(arena.TakeSlab() % 64, 0u);
  }
}

TEST(ShardEntries, FreedEntriesAreGivenOutBeforeNewOnes) {
  EntryArena arena(20);
  ShardEntries entries(&arena);
  std::vector<uint32_t> handles;
  for (int i = 0; i < 1000; ++i) handles.push_back(entries.Allocate());
  const int64_t before = entries.MemoryBytes();
  EXPECT_GE(before, 1000 * 20);
  const std::set<uint32_t> freed = {handles[17], handles[400], handles[999]};
  for (const uint32_t handle : freed) entries.Free(handle);
  EXPECT_EQ((std::set<uint32_t>{entries.Allocate(), entries.Allocate(), entries.Allocate()}), freed);
  EXPECT_LT(entries.MemoryBytes(), before + 64);
}

TEST(ShardEntries, ClearGivesTheSlabsToOtherShards) {
  EntryArena arena(100);
  ShardEntries first(&arena), second(&arena);
  const uint32_t kept = second.Allocate();
  arena.At(kept)[0] = 'k';
  std::set<uint32_t> handles;
  for (int i = 0; i < 5000; ++i) handles.insert(first.Allocate());
  first.Clear();
  EXPECT_EQ(first.MemoryBytes(), 0);
  const uint32_t end = arena.end();
  for (int i = 0; i < 5000; ++i) ASSERT_NE(second.Allocate(), kept);
  EXPECT_EQ(arena.end(), end);
  EXPECT_EQ(arena.At(kept)[0], 'k');
  second.Clear();
  EXPECT_EQ(arena.end(), 0u);
  arena.At(first.Allocate())[0] = 'x';
}

TEST(EntryArena, ShardsOfManyThreadsNeverShareAnEntry) {
  EntryArena arena(16);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&arena, t] {
      ShardEntries entries(&arena);
      for (int round = 0; round < 4; ++round) {
        std::vector<uint32_t> handles;
        for (int i = 0; i < 6000; ++i) {
          handles.push_back(entries.Allocate());
          std::memset(arena.At(handles.back()), t, 16);
        }
        for (const uint32_t handle : handles) ASSERT_EQ(arena.At(handle)[15], static_cast<char>(t));
        entries.Clear();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

int Mappings() {
  std::ifstream maps("/proc/self/maps");
  int count = 0;
  for (std::string line; std::getline(maps, line);) ++count;
  return count;
}

TEST(EntryArena, HoldsAsManyEntriesAsItCanNumberInFewMappings) {
  EntryArena arena(4);
  const int before = Mappings();
  std::vector<uint32_t> slabs;
  const auto take_all = [&] {
    while (true) slabs.push_back(arena.TakeSlab());
  };
  EXPECT_THROW(take_all(), TableFull);
  EXPECT_GT(slabs.size() * arena.slab_entries(), 2'100'000'000u);  // in 8 GB of addresses
  EXPECT_LT(Mappings(), before + 30);
  arena.GiveSlabs(slabs);
  EXPECT_EQ(arena.TakeSlab(), 0u);
}

}  // namespace
}  // namespace millrace
