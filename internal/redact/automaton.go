package redact

// automaton is an Aho-Corasick machine (Aho, Corasick 1975): after any input its
// state is the longest suffix of the input that begins one of the patterns.
// A node has no table of 256 edges, because secrets such as private keys are long,
// in many encodings, and nearly all nodes have one edge: that is in the node.
type automaton struct {
	nodes []node
	first [256]int32 // the edges of the root, where nearly all input stays
}

type node struct {
	only  byte           // the label of the edge
	to    int32          // where the edge leads; 0: there is none
	edges map[byte]int32 // in place of those two, if there are several
	fail  int32
	depth int32 // length of the suffix this state stands for
	match int32 // length of the longest pattern that ends here, 0 for none
}

func (n *node) edge(b byte) (to int32, ok bool) {
	if n.edges != nil {
		to, ok = n.edges[b]
		return to, ok
	}
	return n.to, n.to != 0 && n.only == b
}

func (n *node) addEdge(b byte, to int32) {
	switch {
	case n.edges != nil:
		n.edges[b] = to
	case n.to == 0:
		n.only, n.to = b, to
	default:
		n.edges, n.to = map[byte]int32{n.only: n.to, b: to}, 0
	}
}

// each calls f with every edge.
func (n *node) each(f func(b byte, to int32)) {
	if n.to != 0 {
		f(n.only, n.to)
	}
	for b, to := range n.edges {
		f(b, to)
	}
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
		to, ok := a.nodes[at].edge(pattern[i])
		if !ok {
			to = int32(len(a.nodes))
			a.nodes = append(a.nodes, node{depth: int32(i + 1)})
			a.nodes[at].addEdge(pattern[i], to)
		}
		at = to
	}
	a.nodes[at].match = int32(len(pattern))
}

// link sets the fail edges breadth first, so that a node's fail target, which
// is less deep, is finished before the node is.
func (a *automaton) link() {
	a.nodes[0].each(func(b byte, to int32) { a.first[b] = to })
	queue := []int32{0}
	for len(queue) > 0 {
		at := queue[0]
		queue = queue[1:]
		a.nodes[at].each(func(b byte, to int32) {
			if at != 0 {
				a.nodes[to].fail = a.next(a.nodes[at].fail, b)
			}
			a.nodes[to].match = max(a.nodes[to].match, a.nodes[a.nodes[to].fail].match)
			queue = append(queue, to)
		})
	}
}

// next is the state after byte b in the given state.
func (a *automaton) next(state int32, b byte) int32 {
	for state != 0 {
		if to, ok := a.nodes[state].edge(b); ok {
			return to
		}
		state = a.nodes[state].fail
	}
	return a.first[b]
}
