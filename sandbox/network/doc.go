// Package network connects containers: one bridge per network, one veth pair
// per endpoint, addresses that survive crashes, and one nftables table per
// data root.
//
// A network is a name, an IPv4 subnet and a bridge. An endpoint is a container
// in a network: an address and a veth pair, whose far end is ethN in the
// container's network namespace.
//
// The life of one Attach: take the lock of the data root; load the network's
// definition (the default one is made on first use); make sure that bridge,
// unreachable route, nftables table and ip_forward are there; write the record
// of an address; create the veth pair straight into the namespace; configure
// its far end from a thread that is thrown away afterwards. Every step may run
// twice, and a process killed between two of them leaves nothing that a second
// Attach does not finish or Reconcile does not clear.
//
// Truth is in two places which can be compared: definitions and address
// records are files below the data root, and every link carries its owner in
// IFLA_IFALIAS. There is no daemon and no state in memory, so any number of
// processes may use one root; several roots on one machine agree on subnets
// under the lock /run/naru-network.lock.
//
// What others own is left alone: no table, chain or route of theirs is changed
// except for one jump in iptables' FORWARD or DOCKER-USER where those would
// drop our traffic (see coexist.go).
//
// Published ports are entries of maps in the root's table (publish.go,
// portmap.go): the kernel redirects them, whatever process of ours lives. IPv6
// is a second subnet beside the first one, whose addresses follow from those of
// IPv4 (ipv6.go); the host forwards it only while a network needs it
// (forward6.go).
//
// Not here: a DNS server. See docs/adr/0003.
package network
