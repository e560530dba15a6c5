package policy

import (
	"crypto"
	"crypto/x509"
	"errors"
	"net/netip"
	"time"
)

var errPending = errors.New("policy: being written")

// VerifyOptions are the facts that a policy file is checked against.
type VerifyOptions struct {
	Anchors       []*x509.Certificate    // pinned policy-signing anchors
	CRLs          []*x509.RevocationList // of the policy-signing chain; may be empty
	DeviceCertDER []byte                 // this device's certificate
	Installed     Installed              // the last accepted policy; zero when there never was one
	Now           time.Time
}

// Installed identifies the last policy that a device accepted. The caller keeps it across restarts
// (it is JSON-serializable) and writes it after the new policy is in force.
type Installed struct {
	Serial uint64 `json:"serial"`
	Digest Digest `json:"digest"`
}

// Verify checks a policy file in full and returns it compiled (Document.Table).
func Verify(jws []byte, opt VerifyOptions) (*Document, error) { return nil, errPending }

// Parse reads the JSON payload strictly; it does not look at its meaning (Compile does).
func Parse(payload []byte) (*Document, error) { return nil, errPending }

// Inspect reads a policy file without verifying it, for display only.
func Inspect(jws []byte) (doc *Document, chain []*x509.Certificate, err error) {
	return nil, nil, errPending
}

// Sign checks, compiles and tests the document, and signs it.
func Sign(doc *Document, signer crypto.Signer, chain []*x509.Certificate) ([]byte, error) {
	return nil, errPending
}

// SignPayload signs a payload as it is, unchecked: for tests that need a bad policy.
func SignPayload(payload []byte, signer crypto.Signer, chain []*x509.Certificate) ([]byte, error) {
	return nil, errPending
}

// Compile checks the meaning of a document and makes the Table.
func Compile(doc *Document) (*Table, error) { return nil, errPending }

// Code returns the stable code of a refusal for audit records, such as "policy-expired".
func Code(err error) string { return "policy-refused" }

// Table is a compiled policy: read-only, safe for concurrent use.
type Table struct {
	zones []ZoneInfo
	conns []ConnectionInfo
	rules []RuleInfo
}

// ZoneInfo is a compiled zone.
type ZoneInfo struct {
	Name, Level string
	Prefixes    []netip.Prefix
	Interfaces  []string
}

// ConnectionInfo is a compiled connection: everything that the router needs to make an
// ike.PeerConfig and the kernel's routes. Read-only.
type ConnectionInfo struct {
	Name      string
	Peer      string
	DeviceID  string
	Gateways  []netip.AddrPort
	Service   string
	Category  string
	Auth      string
	PSK       Secret
	Anchors   []*x509.Certificate
	CRLs      []*x509.RevocationList
	ServiceID string
	Start     string
	Idle      time.Duration
	Local     []netip.Prefix // traffic selectors, our side, aggregated and sorted
	Remote    []netip.Prefix // traffic selectors, the peer's side
}

// RuleInfo is a compiled flow.
type RuleInfo struct {
	Conn      int
	Name      string
	Path      string // JSON pointer in the document
	Direction string
	Text      string // "tcp 104,11112 from 10.2.1.0/24 (clinic-b) to 10.1.2.10 (sz)"
}

// Zones, Connections and Rules return the compiled lists. Read-only.
func (t *Table) Zones() []ZoneInfo             { return t.zones }
func (t *Table) Connections() []ConnectionInfo { return t.conns }
func (t *Table) Rules() []RuleInfo             { return t.rules }

// ConnectionIndex returns the index of the connection of that name, or -1.
func (t *Table) ConnectionIndex(name string) int { return -1 }

// ZoneOf returns the index of the local zone that holds a, or -1.
func (t *Table) ZoneOf(a netip.Addr) int { return -1 }

// DeviceAnchors and DeviceCRLs are the trust for the device round.
func (t *Table) DeviceAnchors() []*x509.Certificate { return nil }
func (t *Table) DeviceCRLs() []*x509.RevocationList { return nil }

// Suites and Lifetimes return the document's, with defaults filled in.
func (t *Table) Suites() Suites       { return Suites{} }
func (t *Table) Lifetimes() Lifetimes { return Lifetimes{} }

// Serial, Digest, Issuer, NotBefore and NotAfter identify the policy.
func (t *Table) Serial() uint64       { return 0 }
func (t *Table) Digest() Digest       { return Digest{} }
func (t *Table) Issuer() string       { return "" }
func (t *Table) NotBefore() time.Time { return time.Time{} }
func (t *Table) NotAfter() time.Time  { return time.Time{} }

// Outbound decides about a packet read from the TUN device.
func (t *Table) Outbound(f Flow) Decision { return Decision{Conn: -1, Rule: -1} }

// Inbound decides about a packet that was decrypted on connection conn.
func (t *Table) Inbound(conn int, f Flow) Decision { return Decision{Conn: conn, Rule: -1} }

// RelatedOutbound and RelatedInbound decide about an ICMP error (outer) that carries the header of
// another packet (inner). They never answer Allow; Reply means: let it pass when the flow tracker
// knows inner, or the flow that inner answers.
func (t *Table) RelatedOutbound(outer, inner Flow) Decision { return Decision{Conn: -1, Rule: -1} }
func (t *Table) RelatedInbound(conn int, outer, inner Flow) Decision {
	return Decision{Conn: conn, Rule: -1}
}

// Explanation is why a flow is allowed or denied, for people and (as JSON) for programs.
type Explanation struct {
	Text string `json:"text"`
}

// Explain explains what would happen to a flow.
func (t *Table) Explain(f Flow) Explanation { return Explanation{} }

// Changes is the difference between two tables.
type Changes struct {
	Added, Removed []string // names of connections
	Changed        []ConnectionChange
	ZonesChanged   bool
}

// ConnectionChange is what changed in a connection.
type ConnectionChange struct {
	Name   string
	Fields []string // "flows", "local", "gateways", "anchors" …
	EndsSA bool     // false when swapping the table is enough (flows, idle, start, lifetimes)
}

// Diff tells what changes when t replaces old (nil: nothing was running).
func (t *Table) Diff(old *Table) Changes { return Changes{} }

// KernelView is what the kernel is told: pure data, sorted.
type KernelView struct {
	Zones   []ZoneInfo
	Remotes []KernelRemote
}

// KernelRemote are the prefixes behind one connection.
type KernelRemote struct {
	Conn     int
	Name     string
	Prefixes []netip.Prefix
}

// Kernel returns the prefixes that routes and nftables sets are made of.
func (t *Table) Kernel() KernelView { return KernelView{} }
