package sandbox

import (
	"crypto/rand"
	"math/big"
	"strconv"
)

// madeUpName returns a random name that a person can say and type. From the
// sixth try on it carries a number, as the plain ones seem to be used up.
func madeUpName(try int) string {
	kinds := []string{
		"amber", "bold", "brisk", "calm", "clear", "deep", "early", "fair", "fleet", "fond", "gentle", "grand",
		"hardy", "keen", "kind", "late", "light", "lucid", "mild", "noble", "proud", "quick", "quiet", "ready",
		"sharp", "sleek", "steady", "still", "swift", "tidal", "warm", "wide",
	}
	boats := []string{
		"barge", "brig", "canoe", "clipper", "cog", "coracle", "cutter", "dhow", "dinghy", "dory", "ferry", "frigate",
		"galley", "junk", "kayak", "ketch", "lighter", "lugger", "packet", "pilot", "pinnace", "punt", "raft", "sampan",
		"schooner", "scow", "skiff", "sloop", "tender", "trawler", "tug", "yawl",
	}
	name := pick(kinds) + "_" + pick(boats)
	if try > 5 {
		name += strconv.Itoa(try)
	}
	return name
}

func pick(words []string) string {
	n, err := rand.Int(rand.Reader, big.NewInt(int64(len(words))))
	if err != nil {
		return words[0] // never happens (crypto/rand)
	}
	return words[n.Int64()]
}
