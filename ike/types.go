package ike

import (
	"crypto"
	"crypto/x509"
	"net/netip"
	"strconv"
	"time"

	"wardgate/ike/suite"
)

// SAID names one IKE SA, unique in the process. It stays the same when the IKE SA is rekeyed:
// for the owner a rekeyed IKE SA is the same IKE SA with new keys.
type SAID uint64

// ChildID names one CHILD SA (both directions), unique in the process. A rekeyed CHILD SA is a
// new one: ChildSA.Replaces names the old.
type ChildID uint64

// Path is the pair of UDP or TCP addresses that an IKE SA uses.
type Path struct {
	Local, Remote netip.AddrPort

	// Encap, in Config.Send, SendKeepalive and HandleDatagram, says that the local socket is the
	// NAT traversal one (port 4500), where IKE messages carry the non-ESP marker (RFC 3948). In
	// what an Owner is told, it says that ESP is encapsulated in UDP, by both ends; IKE may use
	// port 4500 without that. ESP must be understood both ways at any time (RFC 7296, section
	// 2.23).
	Encap bool

	// Stream is the number of the TCP connection that carries IKE and ESP (RFC 9329), the higher the
	// newer: see Config.OpenStream and Endpoint.NewStream. 0: UDP, or ESP right above IP.
	Stream uint64
}

// String returns "local-remote", with "/udp" or "/tcp" behind it when ESP is encapsulated.
func (p Path) String() string {
	s := p.Local.String() + "-" + p.Remote.String()
	switch {
	case p.Stream != 0:
		s += "/tcp"
	case p.Encap:
		s += "/udp"
	}
	return s
}

// Clock is the time and its alarms.
type Clock interface {
	Now() time.Time

	// AfterFunc calls f in a goroutine of its own after d. stop prevents the call when it has
	// not begun; it does not wait for one that has.
	AfterFunc(d time.Duration, f func()) (stop func())
}

// Executor runs the work of an Endpoint. The one that is used by default has as many goroutines
// as there are processors for Run and a bounded number for RunSlow; a simulator brings its own
// to decide the order.
type Executor interface {
	// Run runs f soon: parsing, arithmetic, never a wait.
	Run(f func())

	// RunSlow runs f soon: a signature or a chain of certificates, which may wait for a token.
	RunSlow(f func())
}

// PeerConfig is one connection of the policy: a peer and the service that is reached through
// it. Several connections may share a peer. What it proves tells them apart, and where that is the
// same, the selectors that it asks for: an IKE SA is of the one whose CHILD SAs fit best (RFC 7296,
// section 2.9), and makes no others.
// A PeerConfig must not be changed once it was handed to SetPeers.
type PeerConfig struct {
	Name string // unique

	// Local is the address to send from and to be reached at; the zero Addr means any.
	Local netip.Addr

	// Remote are the gateways to try, in order; port 0 means 500. Empty: the peer initiates.
	// An initiator behind a NAT may come from elsewhere: identities decide, not addresses.
	Remote []netip.AddrPort

	// Mobike has both ends follow each other's changes of address (RFC 4555) when the peer does it
	// too: see Endpoint.AddressChanged. IKE then uses port 4500 from IKE_AUTH on.
	Mobike bool

	// MoveNamed has the peer move, without proving itself anew, to the addresses of Remote and RedirectTo
	// alone; a change of a NAT's port is no move. A peer that is somewhere else is told
	// UNACCEPTABLE_ADDRESSES, and makes another IKE SA from there (RFC 7296, section 2.8.3). Nor do we go
	// to others that it tells of. false: to any address at which it gets what is sent to it.
	MoveNamed bool

	// RedirectTo are the networks of gateways, beside Remote, to which a gateway of Remote may
	// redirect us (RFC 5685). Whoever serves the connection there has to prove the same
	// identities. A redirect to anywhere else is refused.
	RedirectTo []netip.Prefix

	Proposals []suite.Proposal // IKE, strongest first

	// LocalAuth and RemoteAuth are the authentication rounds in order (device, then service, or
	// one round with a PSK). Both have the same number of rounds, at least one.
	LocalAuth  []LocalAuth
	RemoteAuth []RemoteAuth

	Children []ChildConfig // at least one

	// Childless makes the IKE SA before any CHILD SA, in an IKE_AUTH exchange without one (RFC 6023),
	// where the responder takes part: so each CHILD SA has a key exchange of its own, the first one
	// too. A responder takes part for connections that have it set.
	Childless bool

	// RekeyIKE and RekeyChild are soft lifetimes. The end that made an SA rekeys it, up to 10 %
	// early; the other end only where that did not happen, 1.5 to 3 s late. An SA that could not be
	// rekeyed ends when it is half as old again, and a minute older at least. 0: 8 h and 1 h.
	RekeyIKE   time.Duration
	RekeyChild time.Duration

	// Reauth is how old an IKE SA gets, at most, before both ends prove themselves anew in another one
	// that takes its place (RFC 7296, section 2.8.3). 0: only when a certificate was renewed or ends.
	Reauth time.Duration

	// LivenessInterval: when nothing authentic came from the peer for so long, it is asked
	// whether it lives (RFC 7296, section 2.4). 0: 30 s, negative: never.
	LivenessInterval time.Duration

	// KeepaliveInterval of the NAT keepalives when we are behind a NAT (RFC 3948, section 2.3).
	// 0: 20 s, negative: never.
	KeepaliveInterval time.Duration

	Retransmit Retransmit

	// Request has us ask for addresses in the network behind the peer when we initiate (RFC 7296,
	// section 2.19): SAInfo.Assigned is what came of it. nil: nothing is asked for.
	Request *ConfigRequest

	// Assign gives addresses to a peer that asks; nil: it gets none. A connection that assigns has no
	// Remote, and it is the peer's to reauthenticate in time.
	Assign *Assign

	// ForceEncap claims a NAT in IKE_SA_INIT so that ESP is encapsulated in UDP on any path: both
	// ends do it then, also when only one claims (RFC 7296, section 2.23). Without a claim ESP is
	// protocol 50, unless the ends find a NAT. Path.Encap says what came of it. A responder does
	// not know who asks when it has to claim: what counts is the first connection that names the
	// initiator's address, or the first of all when none does.
	ForceEncap bool

	// TCP says when TCP encapsulation is used (RFC 9329), TCPPort to which port of the gateways; 0:
	// 4500.
	TCP     TCPMode
	TCPPort uint16
}

// Retransmit is the schedule of an unanswered request: it is sent again after Initial,
// Initial×Factor, Initial×Factor² …, Tries times; then, after one more wait, the peer counts as
// dead. No wait is longer than a minute. Zero values: 1 s, 1.8, 5 times (about 41 s in all).
type Retransmit struct {
	Initial time.Duration
	Factor  float64
	Tries   int
}

// maxWait is the longest wait between two repetitions.
const maxWait = time.Minute

// LocalAuth is what we prove in one authentication round: a certificate's key, or a PSK.
type LocalAuth struct {
	ID     Identity
	PSK    []byte        // pre-shared key; empty: certificate
	Chain  [][]byte      // DER, leaf first, then the intermediates that the peer may lack
	Signer crypto.Signer // the key of Chain[0]; may be slow, and may fail at any time
	// OCSP returns the newest OCSP response (DER) about Chain[0] for peers that ask for it (RFC
	// 4806), or nil. It must not block. nil: there is none.
	OCSP func() []byte

	// Role is what messages call the round: "device", "service".
	Role string
}

// RemoteAuth is what the peer has to prove in one authentication round.
type RemoteAuth struct {
	// IDs are the identities of which the peer must claim one. An Identity with a leading "*."
	// in an FQDN is not special: identities are compared whole.
	IDs []Identity

	PSK []byte // pre-shared key; empty: certificate

	// PPKs are postquantum preshared keys that the peer may name, in the first round alone (RFC
	// 8784); as initiator we propose the first one. RequirePPK refuses a peer that has none of them;
	// without it, a peer that does not know them is talked to without.
	PPKs       []PPK
	RequirePPK bool

	Anchors    []*x509.Certificate
	CRLs       []*x509.RevocationList
	RequireCRL bool // a certificate about which neither a valid CRL of its issuer nor an OCSP response is here is refused

	// RelatedToRound is the earlier round whose leaf certificate this round's certificate must
	// name in its RelatedCertificate extension (RFC 9763); -1: none.
	RelatedToRound int

	// Role is what messages call the round: "device", "service".
	Role string
}

// ChildConfig is one CHILD SA that a connection wants.
type ChildConfig struct {
	Name              string
	LocalTS, RemoteTS []Selector
	Proposals         []suite.Proposal // ESP, strongest first

	// LocalAssigned has LocalTS stand for the addresses that the peer assigned to us, as far as they
	// lie inside of LocalTS, which is what is asked for while they are not known; RemoteAssigned has
	// RemoteTS stand for those that we assigned to the peer. A peer that has none gets no such CHILD
	// SA (FAILED_CP_REQUIRED).
	LocalAssigned, RemoteAssigned bool

	// Queues is how many CHILD SAs with these selectors may stand side by side, so that several
	// processors can work for one connection (RFC 9611); 0 and 1: one. The peer has its own
	// number, and the smaller one counts. The first CHILD SA comes with Initiate, the others when
	// Endpoint.WantQueues asks for them, or the peer does. At most 256.
	Queues int
}

// Selector is a traffic selector (RFC 7296, section 3.13.1): the addresses Start to End, the
// ports StartPort to EndPort, of protocol Proto (0: any). For ICMP the ports are type<<8 | code.
type Selector struct {
	Proto              uint8
	StartPort, EndPort uint16
	Start, End         netip.Addr // same family, Start <= End
}

// CertQuery is a question about a certificate of a peer: does it prove this identity for this
// connection in this round?
type CertQuery struct {
	Peer          *PeerConfig
	Round         int
	Auth          *RemoteAuth
	ID            Identity            // the identity that the peer claims
	Leaf          []byte              // DER, at most 64 KiB
	Intermediates [][]byte            // DER
	OCSP          [][]byte            // DER: responses that came with the certificates (RFC 4806)
	Earlier       []*x509.Certificate // leaves of the earlier rounds; nil where a PSK was used
	At            time.Time

	parsed *x509.Certificate // Leaf, where it was parsed already
}

// Owner is told what happens. The calls come from goroutines of the Endpoint, in order for each
// IKE SA, and must not block; they may call the Endpoint.
type Owner interface {
	IKEUp(SAInfo)
	IKEDown(SAInfo, Reason)

	// ChildUp: install both directions.
	ChildUp(ChildSA)

	// ChildSwitch: send on this CHILD SA from now on. Called once for each whose SendNow was
	// false, unless it goes down before.
	ChildSwitch(ChildID)

	// ChildDown: remove both directions. When Reason.Rekeyed, packets that are still on their
	// way may be accepted for a short grace.
	ChildDown(ChildID, Reason)

	// PathChanged: the IKE SA and all its CHILD SAs now use this path.
	PathChanged(SAID, Path)

	// Refused: something was refused; it belongs into the audit record.
	Refused(Refusal)

	// InitiateFailed: the answer to an Initiate that ended in nothing. child is empty when the
	// IKE SA itself did not come to be.
	InitiateFailed(peer, child string, err error)
}

// SAInfo describes an IKE SA in which every round was proved.
type SAInfo struct {
	ID            SAID
	Peer          string // PeerConfig.Name
	Initiator     bool   // we initiated it
	Path          Path
	Suite         string // such as aes256gcm16-prfsha384-x25519
	SPIi, SPIr    uint64 // of the newest keys
	LocalIDs      []Identity
	RemoteIDs     []Identity // one for each round
	RemoteCerts   [][]byte   // DER of the leaves, one for each round, nil where a PSK was used
	Created       time.Time  // when the last round was done
	Resumed       bool       // by a ticket, which stands for all rounds (RFC 5723)
	Authenticated time.Time  // when all rounds were last proved in full; before Created where Resumed
	PPK           string     // ID of the PPK in its keys (RFC 8784); empty: none
	Assigned      *NetConfig // to us (PeerConfig.Request), or Addrs alone: to the peer (Assign); nil: nothing
	NATLocal      bool       // we are behind a NAT
	NATRemote     bool       // the peer is
}

// ChildSA is everything the data path needs to know about a CHILD SA. The byte slices belong to
// the receiver, who wipes them.
type ChildSA struct {
	ID, Replaces ChildID // Replaces 0: a new one, no rekey
	SA           SAID
	Peer, Child  string // PeerConfig.Name, ChildConfig.Name

	// Queue tells CHILD SAs with the same selectors apart (RFC 9611): 0 is the first one, the
	// fallback that carries whatever has no queue of its own; 1 to ChildConfig.Queues-1 are the
	// others. The peer accepts every packet on each of them, so any may stand in for any other,
	// also when the fallback went down before them. A rekey keeps the number. The numbers are
	// ours alone: the peer counts its ends for itself.
	Queue int

	SPIIn, SPIOut uint32
	Encr, Integ   uint16 // IANA transform numbers; Integ 0 with an AEAD
	KeyBits       int    // of the cipher key; 0 where the cipher has one length only
	ESN           bool   // 64-bit sequence numbers

	KeyIn, KeyOut     []byte // key|salt as they lie in KEYMAT (RFC 7296, section 2.17)
	IntegIn, IntegOut []byte

	LocalTS, RemoteTS []Selector
	Path              Path

	// SendNow: send on it at once. Otherwise receive on it, and go on sending on Replaces (with
	// Replaces 0: on another CHILD SA of the same Child, or hold the packets) until a packet that came in on this one was authentic, or
	// ChildSwitch is called, whichever is first. ChildSwitch always comes, unless ChildDown does.
	SendNow bool

	RemoteIDs []Identity
	Created   time.Time
}

// Reason says why something ended.
type Reason struct {
	// Code is one of the Reason constants; they are stable.
	Code    string
	Text    string
	Rekeyed bool // a newer one took its place
	Remote  bool // the peer ended it
}

// The codes of Reason.
const (
	ReasonRekeyed         = "rekeyed"         // a newer one took its place
	ReasonDeletedByPeer   = "deleted-by-peer" // the peer sent a Delete
	ReasonDeleted         = "deleted-locally" // Terminate or DeleteChild
	ReasonPeerDead        = "peer-dead"       // no answer to a request
	ReasonPeerCrashed     = "peer-crashed"    // the peer lost its state and shows the token (RFC 6290)
	ReasonReauthenticated = "reauthenticated" // a new IKE SA with new proofs took its place
	ReasonReplaced        = "replaced"        // the peer lost its state and came back (INITIAL_CONTACT)
	ReasonPolicy          = "policy"          // SetPeers took the right away
	ReasonShutdown        = "shutdown"        // Close
	ReasonProtocol        = "protocol-error"  // the peer broke the protocol
	ReasonExpired         = "expired"         // the keys are too old and could not be replaced
	ReasonRedirected      = "redirected"      // to another gateway (RFC 5685)
	ReasonRedundant       = "redundant"       // lost a rekey collision
)

// Refusal is one refused attempt. The wire only ever says AUTHENTICATION_FAILED or the like;
// this says what was wrong.
type Refusal struct {
	At     time.Time
	Peer   string // connection, where it could be told
	Remote netip.AddrPort
	IDs    []Identity // identities that the peer claimed so far, one for each round
	Round  int        // authentication round, from 0; -1: before or after the rounds
	Role   string     // RemoteAuth.Role of that round
	Code   Code
	Text   string
	Err    error
}

// SAStatus is the state of one IKE SA at the time of a Snapshot.
type SAStatus struct {
	SAInfo
	State    State
	Age      time.Duration // since Created; since the beginning when it is not established
	Rekeyed  int           // how often the IKE SA was rekeyed
	LastSeen time.Time     // last authentic IKE message of the peer
	Children []ChildStatus
}

// ChildStatus is the state of one CHILD SA at the time of a Snapshot.
type ChildStatus struct {
	ID                ChildID
	Child             string
	SPIIn, SPIOut     uint32
	Suite             string
	LocalTS, RemoteTS []Selector
	Age               time.Duration
	Queue             int  // ChildSA.Queue
	Rekeyed           int  // how many CHILD SAs it succeeds
	Deleting          bool // a Delete is on its way
}

// AnySelector covers all of the IPv4 or IPv6 addresses.
func AnySelector(v6 bool) Selector {
	p := netip.MustParsePrefix("0.0.0.0/0")
	if v6 {
		p = netip.MustParsePrefix("::/0")
	}
	return PrefixSelector(p)
}

// PrefixSelector covers all traffic of the addresses of p.
func PrefixSelector(p netip.Prefix) Selector {
	p = p.Masked()
	return Selector{EndPort: 65535, Start: p.Addr(), End: lastAddr(p)}
}

// String returns the selector as "10.0.0.0..10.0.0.255", with "[proto/port-port]" behind it
// where it is narrower than all traffic of the addresses.
func (s Selector) String() string {
	out := s.Start.String()
	if s.Start != s.End {
		out += ".." + s.End.String()
	}
	if s.Proto == 0 && s.StartPort == 0 && s.EndPort == 65535 {
		return out
	}
	out += "[" + strconv.Itoa(int(s.Proto))
	switch {
	case s.StartPort == 0 && s.EndPort == 65535:
	case s.StartPort == 65535 && s.EndPort == 0:
		out += "/opaque"
	case s.StartPort == s.EndPort:
		out += "/" + strconv.Itoa(int(s.StartPort))
	default:
		out += "/" + strconv.Itoa(int(s.StartPort)) + "-" + strconv.Itoa(int(s.EndPort))
	}
	return out + "]"
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
