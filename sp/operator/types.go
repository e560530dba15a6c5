package operator

import (
	"context"
	"io/fs"
	"time"

	"wardgate/sp/registry"
)

// Plan is what a change of the registry does. Applied says that it was carried out.
type Plan struct {
	From     uint64            `json:"from"` // revision that it was made from
	Changes  []registry.Change `json:"changes"`
	Affected []string          `json:"affected"`          // devices that may get a new policy
	Text     string            `json:"text"`              // for people, member by member; empty: nothing changes
	Applied  uint64            `json:"applied,omitempty"` // revision that it made; where nothing changed, the one there was
}

// By says on whose behalf something is done. A Server takes Who from the connection, never from the
// request.
type By struct {
	Who string
	Why string // for the history; may be empty
}

// Backend is the centre as this package needs it. Errors: ErrNotFound, ErrConflict, and those of package
// registry; every other one is the centre's own trouble.
type Backend interface {
	// Current returns the registry and its revision.
	Current(ctx context.Context) (*registry.Registry, uint64, error)
	// At returns the registry as it was at a revision.
	At(ctx context.Context, revision uint64) (*registry.Registry, error)
	// Plan says what a folder of registry files would change.
	Plan(ctx context.Context, files fs.FS) (*Plan, error)
	// Apply makes a folder the registry, in one transaction. Where from is not nil and another revision
	// is current, nothing is done and the error is ErrConflict.
	Apply(ctx context.Context, files fs.FS, from *uint64, by By) (*Plan, error)
	// DeviceState returns what the registry does not know of a device.
	DeviceState(ctx context.Context, device string) (*DeviceState, error)
	// RevokeDevice shuts a device out. reason is one of Reasons.
	RevokeDevice(ctx context.Context, device, reason string, by By) (*Revocation, error)
	// MakeServiceKey makes a service's next CA, or its pre-shared key.
	MakeServiceKey(ctx context.Context, service string, by By) (*Made, error)
	// ServiceCAs tells how a service's CAs are, the newest first; none with a pre-shared key.
	ServiceCAs(ctx context.Context, service string) ([]CA, error)
	// History returns at most limit revisions below one (0: from the newest on), the newest first.
	History(ctx context.Context, before uint64, limit int) ([]Revision, error)
	// Record returns at most limit entries of the record after a sequence number.
	Record(ctx context.Context, after uint64, limit int) ([]Entry, error)
	// VerifyRecord checks the chain from a mark (zero: from the beginning) and returns the last one. The
	// error is ErrDamaged where an entry is not as it was.
	VerifyRecord(ctx context.Context, from Mark) (Mark, error)
	// CRLs returns the current revocation lists of all services.
	CRLs(ctx context.Context) ([]CRL, error)
	// Health says how the centre is.
	Health(ctx context.Context) (*Health, error)
	// Refused puts on record that somebody was refused.
	Refused(ctx context.Context, r Refusal)
}

// Reasons are the reasons to revoke a device.
var Reasons = []string{"stolen", "left", "gone", "withdrawn"}

// Refusal is a caller who may not use the API.
type Refusal struct{ Who, What, Where, Code, Expected, Came string }

// API is what operators can do. Local and Client implement it.
type API interface {
	Health(ctx context.Context) (*Health, error)
	Registry(ctx context.Context) (*Summary, error)
	History(ctx context.Context, before uint64, limit int) (*History, error)
	// Files returns the registry's files; at nil: as it is now.
	Files(ctx context.Context, at *uint64) (*Files, error)
	File(ctx context.Context, path string) (*File, error)
	// PutFile replaces, makes (had empty) or removes (text nil) one file. had is the ETag of the file
	// that is to be replaced or removed.
	PutFile(ctx context.Context, path string, text *string, had string, by By) (*Plan, error)
	Plan(ctx context.Context, in Input) (*Plan, error)
	// Apply carries out what Plan said of the same input. from nil: whatever is current.
	Apply(ctx context.Context, in Input, from *uint64, by By) (*Plan, error)

	Members(ctx context.Context, p Page) (*List[MemberItem], error)
	Member(ctx context.Context, name string) (*Member, error)
	Devices(ctx context.Context, p Page) (*List[registry.Device], error)
	Device(ctx context.Context, name string) (*Device, error)
	Services(ctx context.Context, p Page) (*List[ServiceItem], error)
	Service(ctx context.Context, name string) (*Service, error)
	Contracts(ctx context.Context, p Page) (*List[registry.Contract], error)
	Contract(ctx context.Context, name string) (*Contract, error)

	RevokeDevice(ctx context.Context, device, reason string, by By) (*Revocation, error)
	MakeServiceKey(ctx context.Context, service string, by By) (*Made, error)
	ServiceCAs(ctx context.Context, service string) (*CAs, error)
	Record(ctx context.Context, after uint64, limit int) (*Record, error)
	VerifyRecord(ctx context.Context, from Mark) (Mark, error)
	CRLs(ctx context.Context) (*CRLs, error)
}

// Input is a registry to be: all its files, or (Patch not nil) those that change.
type Input struct {
	Files fs.FS
	Patch map[string]*string // by path; nil: the file goes
}

// Page is a part of a list, by name.
type Page struct {
	After string // names after this one; empty: from the first on
	Limit int    // 1 to MaxPage; 0: DefaultPage
}

// Bounds of pages.
const (
	DefaultPage = 100
	MaxPage     = 1000
)

// List is a part of a list of objects.
type List[T any] struct {
	Revision uint64 `json:"revision"`
	Items    []T    `json:"items"`
	Next     string `json:"next,omitempty"` // After of the next page; empty: there is no more
}

// Summary is what there is.
type Summary struct {
	Revision  uint64    `json:"revision"` // 0: nothing was ever applied
	Applied   *Revision `json:"applied,omitempty"`
	Members   int       `json:"members"`
	Devices   int       `json:"devices"`
	Services  int       `json:"services"`
	Contracts int       `json:"contracts"`
}

// Revision is one entry of the registry's history.
type Revision struct {
	Revision uint64    `json:"revision"`
	At       time.Time `json:"at"`
	Who      string    `json:"who"`
	Why      string    `json:"why,omitempty"`
	Added    int       `json:"added"` // objects
	Changed  int       `json:"changed"`
	Removed  int       `json:"removed"`
	Hash     string    `json:"hash"` // SHA-256 of all objects, hex
}

// History is a part of the registry's history, the newest first.
type History struct {
	Items []Revision `json:"items"`
	Next  uint64     `json:"next,omitempty"` // before of the next page; 0: there is no more
}

// Files are a registry's files.
type Files struct {
	Revision uint64            `json:"revision"`
	Files    map[string]string `json:"files"` // by path
}

// File is one of them.
type File struct {
	Path string
	Text string
	ETag string
}

// MemberItem is a member in a list.
type MemberItem struct {
	registry.Member
	DeviceCount int `json:"device_count"`
}

// Member is a member with what belongs to it.
type Member struct {
	registry.Member
	Devices []string `json:"devices"`
}

// Device is a device with what belongs to it.
type Device struct {
	registry.Device
	Memberships []registry.Membership `json:"memberships"`
	Contracts   []string              `json:"contracts"`
	DeviceState
}

// DeviceState is what the centre knows of a device beside the registry.
type DeviceState struct {
	Policy       *Policy       `json:"policy,omitempty"`
	Certificates []Certificate `json:"certificates"` // at most 10, the newest first
	Report       *Report       `json:"report,omitempty"`
}

// Policy is a device's newest policy.
type Policy struct {
	Serial   uint64    `json:"serial"`
	Revision uint64    `json:"revision"` // of the registry that it was made from
	Created  time.Time `json:"created"`
	NotAfter time.Time `json:"not_after"`
}

// Certificate is a service certificate of a device.
type Certificate struct {
	Service  string    `json:"service"`
	Serial   string    `json:"serial"`
	NotAfter time.Time `json:"not_after"`
	Ends     time.Time `json:"ends,omitzero"` // revoked then, or replaced and good until then
}

// Report is what a device told last.
type Report struct {
	Seen         time.Time    `json:"seen"`
	Version      string       `json:"version"`
	PolicySerial uint64       `json:"policy_serial"` // in force; 0: none
	NotAfter     time.Time    `json:"not_after,omitzero"`
	Connections  []Connection `json:"connections"`
	Errors       []Error      `json:"errors"`
}

// Connection is how a connection of a device is.
type Connection struct {
	Name   string    `json:"name"`
	Up     bool      `json:"up"`
	Since  time.Time `json:"since,omitzero"`
	Detail string    `json:"detail,omitempty"`
}

// Error is one of the last errors that a device told.
type Error struct {
	At   time.Time `json:"at"`
	Code string    `json:"code"`
	Text string    `json:"text"`
}

// ServiceItem is a service in a list.
type ServiceItem struct {
	registry.Service
	MemberCount int `json:"member_count"` // devices that have joined it
}

// Service is a service with those who have joined it.
type Service struct {
	registry.Service
	Memberships []registry.Membership `json:"memberships"`
}

// Contract is a contract and whether it is in force.
type Contract struct {
	registry.Contract
	Now string `json:"now"` // "in force", or why it is not
}

// Revocation is what became of an order to revoke a device.
type Revocation struct {
	Device       string   `json:"device"`
	Revision     uint64   `json:"revision"`
	Certificates int      `json:"certificates"` // that were revoked now
	Peers        []string `json:"peers"`        // whose policies are made anew
}

// Made is what was made for a service.
type Made struct {
	Made string `json:"made"` // where, on the centre's machine
}

// CA is a CA of a service.
type CA struct {
	Number   int       `json:"number"`
	State    string    `json:"state"`          // unfinished, waits, published, issues, used, ended or broken
	Folder   string    `json:"folder"`         // on the centre's machine
	Key      string    `json:"key,omitempty"`  // "file", or what names it on the token
	Root     string    `json:"root,omitempty"` // whose
	From     time.Time `json:"from,omitzero"`  // when it begins to issue; zero: it did at once
	NotAfter time.Time `json:"not_after,omitzero"`
	Fault    string    `json:"fault,omitempty"` // why it is broken
}

// CAs are those of one service, the newest first.
type CAs struct {
	Items []CA `json:"items"`
}

// Entry is one entry of the record. Each holds the hash of the one before.
type Entry struct {
	Seq    uint64            `json:"seq"`
	At     time.Time         `json:"at"`
	Event  string            `json:"event"`
	Who    string            `json:"who,omitempty"`
	What   string            `json:"what,omitempty"`
	Where  string            `json:"where,omitempty"`
	Result string            `json:"result"`
	Detail map[string]string `json:"detail,omitempty"`
	Hash   string            `json:"hash"` // SHA-256, hex
}

// Record is a part of the record.
type Record struct {
	Items []Entry `json:"items"`
	Next  uint64  `json:"next"` // after of the next page, also when nothing more has happened yet
}

// Mark is a place in the record.
type Mark struct {
	Seq  uint64 `json:"seq"`
	Hash string `json:"hash"`
}

// CRL is a revocation list.
type CRL struct {
	Service    string    `json:"service"`
	Issuer     string    `json:"issuer"` // key identifier of the CA, hex
	Number     string    `json:"number"`
	ThisUpdate time.Time `json:"this_update"`
	NextUpdate time.Time `json:"next_update"`
	Entries    int       `json:"entries"`
	PEM        string    `json:"pem"`
}

// CRLs are the current revocation lists.
type CRLs struct {
	Items []CRL `json:"items"`
}

// Health is how the centre is.
type Health struct {
	Instance string `json:"instance"`
	Database string `json:"database"` // sqlite or postgres
	Revision uint64 `json:"revision"`
	Waiting  int    `json:"waiting"` // policies that are to be made
	Leased   int    `json:"leased"`  // policies that are being made
	Failing  int    `json:"failing"` // policies that could not be made, and are tried again
}
