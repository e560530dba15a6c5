package chipproto

import (
	"errors"
	"fmt"
	"time"
)

// Version of the protocol. Client and chip process are installed together, so there is one.
const Version = 1

// Bounds of messages, in octets and numbers.
const (
	MaxFrame   = 512 << 10 // after the length
	MaxText    = 4 << 10   // a text for people
	MaxName    = 64        // a service's name, a label
	MaxData    = 64 << 10  // what is signed; Ed25519 signs whole messages
	MaxCert    = 16 << 10  // DER of a certificate
	MaxCerts   = 64        // certificates in a message
	MaxObjects = 256       // credentials on a token
	MaxID      = 64        // CKA_ID
)

// Type is the type of a message.
type Type uint8

// The types of message. A reply has the type of its request with ReplyBit set.
const (
	TypeHello      Type = 1 // module loaded? first request of a conversation
	TypePing       Type = 2 // is the process alive? answered without the module
	TypeStatus     Type = 3 // state of the token
	TypeTokens     Type = 4 // the tokens the module sees
	TypeList       Type = 5 // credentials on the token
	TypeSign       Type = 6
	TypeGenerate   Type = 7  // make a key pair
	TypeStore      Type = 8  // write a certificate (and intermediates) to a layer
	TypeDelete     Type = 9  // remove a service, or a key that never got its certificate
	TypeInitToken  Type = 10 // initialise the token; PINs come through the PIN pipe
	TypeMechanisms Type = 11 // which key types the token can make
	TypeEvent      Type = 12 // from the process alone

	ReplyBit Type = 0x80
)

var typeNames = map[Type]string{
	TypeHello: "hello", TypePing: "ping", TypeStatus: "status", TypeTokens: "tokens", TypeList: "list", TypeSign: "sign",
	TypeGenerate: "generate", TypeStore: "store", TypeDelete: "delete", TypeInitToken: "init-token", TypeMechanisms: "mechanisms", TypeEvent: "event",
}

// String returns the name of the type.
func (t Type) String() string {
	n, ok := typeNames[t&^ReplyBit]
	if !ok {
		return fmt.Sprintf("type %d", uint8(t))
	}
	if t&ReplyBit != 0 {
		n += " reply"
	}
	return n
}

// Timeout is how long the chip process may take for a request before it counts as hung. Making an
// RSA key takes a smart card tens of seconds.
func (t Type) Timeout() time.Duration {
	switch t {
	case TypeGenerate, TypeInitToken:
		return 2 * time.Minute
	case TypeStore, TypeDelete, TypeHello:
		return 30 * time.Second
	case TypePing, TypeStatus, TypeTokens, TypeList, TypeSign, TypeMechanisms, TypeEvent, ReplyBit:
	}
	return 10 * time.Second
}

// Layer of the token.
type Layer uint8

// The two layers.
const (
	LayerDevice  Layer = 1
	LayerService Layer = 2
)

// Hash of what is signed. HashNone is for Ed25519, which signs the message itself.
type Hash uint8

// The hashes.
const (
	HashNone   Hash = 0
	HashSHA256 Hash = 1
	HashSHA384 Hash = 2
	HashSHA512 Hash = 3
)

// Scheme of a signature.
type Scheme uint8

// The schemes.
const (
	SchemeECDSA    Scheme = 1 // result: DER SEQUENCE { r, s }
	SchemeEd25519  Scheme = 2
	SchemePKCS1v15 Scheme = 3
	SchemePSS      Scheme = 4
)

// KeyType names a kind of key that a token can be asked to make.
type KeyType string

// The kinds of key.
const (
	P256    KeyType = "p256"
	P384    KeyType = "p384"
	RSA2048 KeyType = "rsa2048"
	RSA3072 KeyType = "rsa3072"
	Ed25519 KeyType = "ed25519"
)

// Code says what kind of error a reply carries. Codes are stable.
type Code uint16

// The kinds of error.
const (
	OK                Code = 0
	CodeInternal      Code = 1  // a mistake of ours
	CodeBadRequest    Code = 2  // the request makes no sense
	CodeModule        Code = 3  // the PKCS#11 module cannot be loaded or fails as a whole
	CodeNoToken       Code = 4  // no such token, from the start
	CodeRemoved       Code = 5  // the token was there and is gone
	CodePINWrong      Code = 6  // tried once and refused
	CodePINNotRetried Code = 7  // known to be wrong: not tried again
	CodePINLocked     Code = 8  // the token has locked the PIN
	CodePINLastTry    Code = 9  // one try left: not spent without a person
	CodePINSource     Code = 10 // the PIN cannot be read
	CodeNoKey         Code = 11 // no such key on the token
	CodeNoDevice      Code = 12 // layer 1 is empty or incomplete
	CodeDeviceBroken  Code = 13 // device key and certificate do not belong together
	CodeKeyNotOnToken Code = 14 // the certificate's key is not on this token
	CodeUntrusted     Code = 15 // the certificate does not chain to an anchor given, or is refused otherwise
	CodeNotBound      Code = 16 // the certificate is bound to no device or another one
	CodeExists        Code = 17 // something is there already
	CodeFull          Code = 18 // no room on the token
	CodeUnsupported   Code = 19 // the token cannot do that
	CodeToken         Code = 20 // any other error of the module
	CodeBusy          Code = 21 // too many requests at once
	CodeReadOnly      Code = 22 // the token is write-protected
)

// TokenState is how the token is.
type TokenState uint8

// The states of a token.
const (
	StateAbsent   TokenState = 0 // not there
	StatePresent  TokenState = 1 // there, not logged in
	StateReady    TokenState = 2 // logged in
	StatePIN      TokenState = 3 // there, the PIN is refused
	StateLocked   TokenState = 4 // there, the PIN is locked
	StateFailed   TokenState = 5 // the module answers with errors
	numTokenState            = 6
)

// PINState is what the token's flags say about the tries left.
type PINState uint8

// The states of the PIN's counter.
const (
	PINUnknown  PINState = 0
	PINGood     PINState = 1 // no wrong PIN since the last good one
	PINLow      PINState = 2 // CKF_USER_PIN_COUNT_LOW: at least one wrong PIN
	PINFinalTry PINState = 3 // CKF_USER_PIN_FINAL_TRY: one try left
	PINLocked   PINState = 4 // CKF_USER_PIN_LOCKED
	numPINState          = 5
)

// TokenInfo describes a token, as far as the module tells.
type TokenInfo struct {
	Slot         uint64
	Label        string
	Manufacturer string
	Model        string
	Serial       string
	State        TokenState
	PIN          PINState
	Initialized  bool
	FreePrivate  uint64 // octets; ^0: the module does not say
}

// Credential is a key pair on the token and what belongs to it.
type Credential struct {
	Layer   Layer
	Service string // layer 2
	ID      []byte // CKA_ID of key and certificate
	Public  []byte // DER SubjectPublicKeyInfo; empty when the key is missing
	Cert    []byte // DER; empty when there is none yet
	Chain   [][]byte
	HasKey  bool // the private key is on the token
}

// Event is something that the process tells on its own accord.
type Event struct {
	Kind EventKind
	Text string
}

// EventKind is the kind of an event.
type EventKind uint8

// The kinds of event.
const (
	EventInserted EventKind = 1 // the token is there and usable
	EventRemoved  EventKind = 2
	EventPIN      EventKind = 3 // the PIN is refused, locked or cannot be read
	EventFailed   EventKind = 4 // the module answers with errors
	EventFull     EventKind = 5 // a write failed for want of room
	EventReadOnly EventKind = 6 // a write failed because the token is write-protected
	numEventKind            = 7
)

// Message is any message. Which fields count depends on the type: see the table in fields.go.
type Message struct {
	Type Type
	ID   uint32 // request number; 0 in events

	// In error replies.
	Code   Code
	Text   string // what happened; also an event's
	Do     string // what to do about it
	RV     uint64 // CK_RV of the module; 0: none
	Tries  int8   // PIN tries left; -1: not known
	Op     string // PKCS#11 function that failed
	Class  string // class of a refused certificate
	Source string // opaque mark of the PIN source that was refused (never derived from the PIN)

	Layer    Layer
	Service  string
	KeyID    []byte
	KeyType  KeyType
	Scheme   Scheme
	Hash     Hash
	Salt     uint16 // PSS, octets
	Data     []byte // what is signed; the signature in the reply
	Public   []byte // SubjectPublicKeyInfo in DER
	Cert     []byte
	Chain    [][]byte
	Anchors  [][]byte
	CRLs     [][]byte
	Replace  bool // overwrite layer 1
	Label    string
	Module   string
	Tokens   []TokenInfo
	Creds    []Credential
	KeyTypes []KeyType
	Event    EventKind
}

// Errors of the protocol. They end the conversation.
var (
	ErrFrame   = errors.New("chip protocol: malformed frame")
	ErrVersion = errors.New("chip protocol: another version")
)
