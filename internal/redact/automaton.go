package redact

// automaton is an Aho-Corasick machine (Aho, Corasick 1975): after any input its
// state is the longest suffix of the input that begins one of the patterns.
// The edges are kept as a map per node, not as 256 entries, because secrets
// such as private keys are long and most nodes have one edge.
type automaton struct {
	nodes []node
	first [256]int32 // the edges of the root, where nearly all input stays
}

type node struct {
	edges map[byte]int32
	fail  int32
	depth int32 // length of the suffix this state stands for
	match int32 // length of the longest pattern that ends here, 0 for none
}

// newAutomaton returns nil when there is nothing to look for.
func newAutomaton(patterns []string) *automaton {
	if len(patterns) == 0 {
		return nil
	}
	a := &automaton{nodes: []node{{}}}
	for _, p := range patterns {
		a.add(p)
	}
	a.link()
	return a
}

func (a *automaton) add(pattern string) {
	at := int32(0)
	for i := range len(pattern) {
		to, ok := a.nodes[at].edges[pattern[i]]
		if !ok {
			to = int32(len(a.nodes))
			a.nodes = append(a.nodes, node{depth: int32(i + 1)})
			if a.nodes[at].edges == nil {
				a.nodes[at].edges = make(map[byte]int32, 1)
			}
			a.nodes[at].edges[pattern[i]] = to
		}
		at = to
	}
	a.nodes[at].match = int32(len(pattern))
}

// link sets the fail edges breadth first, so that a node's fail target, which
// is less deep, is finished before the node is.
func (a *automaton) link() {
	for b, to := range a.nodes[0].edges {
		a.first[b] = to
	}
	queue := []int32{0}
	for len(queue) > 0 {
		at := queue[0]
		queue = queue[1:]
		for b, to := range a.nodes[at].edges {
			if at != 0 {
				a.nodes[to].fail = a.next(a.nodes[at].fail, b)
			}
			a.nodes[to].match = max(a.nodes[to].match, a.nodes[a.nodes[to].fail].match)
			queue = append(queue, to)
		}
	}
}

// next is the state after byte b in the given state.
func (a *automaton) next(state int32, b byte) int32 {
	for state != 0 {
		if to, ok := a.nodes[state].edges[b]; ok {
			return to
		}
		state = a.nodes[state].fail
	}
	return a.first[b]
}
