// An etcd that was killed with authentication on: what was allowed is taken over, and what was refused is refused again.
//
// Users with all kinds of rights, and one without a token, ask A for changes of all kinds, while users, roles and
// authentication itself change as well. Tokens are JWTs: each says which revision of users and roles it is from, so that
// many are out of date. Then A is killed, and its log judged by etcd itself, as it starts again, and by ours: C is an etcd
// on what ours makes of A's directory. etcd commits its database with each change of users or roles, so they are in the
// log alone only where the database from before takes the place of the newest.
package interop

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const (
	authSteps = 2000
	// Above that, etcd's order of permissions of one key is an accident of how it sorts.
	permissionsMax = 12
)

var (
	authUsers = []string{"root", "alice", "bob", "carol", "dave", ""}
	authRoles = []string{"root", "reader", "writer", "clerk", "none", ""}
	authKeys  = []string{"a", "a\x00", "aa", "b", "c", "cc", "d"}
	// Ends of ranges. Those of requests are never below their keys: then etcd answers by chance.
	authEnds = []string{"", "", "", "\x00", "aa", "b", "c", "cc", "d", "e"}
)

// authLoad makes requests of A, and knows what it needs for that.
type authLoad struct {
	*rand.Rand
	s         *server
	tokens    map[string]string
	passwords map[string]string
	on        bool
	// What was answered while authentication was on.
	answers map[authAnswer]int
}

// authAnswer is what some kind of user was answered: "root", "other" or "nobody", and no text if it was done.
type authAnswer struct{ user, method, text string }

func TestImportOfAKilledEtcdWithUsers(t *testing.T) {
	seed := fromEnv(t, "SEED", rand.Uint64()>>1)
	fmt.Printf("import of a killed etcd with users: SEED=%d\n", seed)
	secret := filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(secret, []byte("not for others"), 0o600))
	flags := append([]string{"--auth-token", "jwt,sign-method=HS256,ttl=1h,priv-key=" + secret, "--bcrypt-cost", "4"}, uncommitted...)
	for _, oldDatabase := range []bool{false, true} {
		t.Run(fmt.Sprintf("oldDatabase=%v", oldDatabase), func(t *testing.T) {
			a, b := newServer(t, "A", programA(), flags...), newServer(t, "B", programB())
			c := newServer(t, "C", programA(), flags...)
			inBoth(t, a, c, (*server).start)
			must(t, a.stop())
			old, err := os.ReadFile(a.database())
			must(t, err)
			must(t, a.startOnce())
			l := &authLoad{
				Rand: rand.New(rand.NewPCG(seed, 8)), s: a,
				tokens: make(map[string]string), passwords: make(map[string]string), answers: make(map[authAnswer]int),
			}
			l.begin(t)
			for range authSteps {
				l.step(t)
			}
			if !oldDatabase {
				// What the log has behind the last change of users and roles.
				for range authSteps / 10 {
					l.changeData(t, false)
				}
			}
			l.logIn(t, "root")
			index := a.authStatus(t, l.tokens["root"]).RaftIndex
			a.kill()
			l.checkVariety(t)
			if oldDatabase {
				must(t, os.WriteFile(a.database(), old, 0o600))
			}

			imported, exported := filepath.Join(b.dir, "imported"), filepath.Join(b.dir, "exported.db")
			t.Logf("%s", run(t, b.program, "import", a.dataDir(), "--data-dir", imported))
			run(t, b.program, "check", "--data-dir", imported)
			run(t, b.program, "export", exported, "--data-dir", imported)
			if got := binary.BigEndian.Uint64([]byte(rowsOf(t, exported, "meta")["consistent_index"])); got != index {
				t.Errorf("the raft index is %d, after the import %d", index, got)
			}
			// Twice, since etcd remembers hashes of what it has compacted until it stops.
			must(t, errors.Join(a.startOnce(), a.stop()))
			for _, bucket := range []string{"auth", "authRoles", "authUsers"} {
				rowsA, rowsB := rowsOf(t, a.database(), bucket), rowsOf(t, exported, bucket)
				if !maps.Equal(rowsA, rowsB) {
					t.Errorf("rows of %s: etcd has %q, ours %q", bucket, rowsA, rowsB)
				}
			}
			c.restoreFrom(t, exported)
			must(t, errors.Join(a.startOnce(), c.startOnce()))
			for _, s := range []*server{a, c} {
				s.becomeRoot(t, l.passwords["root"])
			}
			compareHistory(t, a, c)
			compareLeases(t, a, c)
			if usersA, usersC := a.listAuth(t), c.listAuth(t); usersA != usersC {
				t.Errorf("users and roles of A:\n%s\nof C:\n%s", usersA, usersC)
			}
		})
	}
}

// begin makes users and roles of whom each may do something else, and turns authentication on.
func (l *authLoad) begin(t *testing.T) {
	for _, user := range []string{"root", "alice", "bob"} {
		must(t, l.ask("", "Auth/UserAdd", &pb.AuthUserAddRequest{Name: user, Password: user}, new(pb.AuthUserAddResponse)))
		l.passwords[user] = user
	}
	must(t, l.ask("", "Auth/UserGrantRole", &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"}, new(pb.AuthUserGrantRoleResponse)))
	for i, role := range []string{"reader", "writer"} {
		must(t, l.ask("", "Auth/RoleAdd", &pb.AuthRoleAddRequest{Name: role}, new(pb.AuthRoleAddResponse)))
		permission := &authpb.Permission{PermType: authpb.Permission_Type(2 * i), Key: []byte("aa"), RangeEnd: []byte{0}}
		must(t, l.ask("", "Auth/RoleGrantPermission", &pb.AuthRoleGrantPermissionRequest{Name: role, Perm: permission}, new(pb.AuthRoleGrantPermissionResponse)))
	}
	must(t, l.ask("", "Auth/UserGrantRole", &pb.AuthUserGrantRoleRequest{User: "alice", Role: "writer"}, new(pb.AuthUserGrantRoleResponse)))
	must(t, l.ask("", "Auth/UserGrantRole", &pb.AuthUserGrantRoleRequest{User: "bob", Role: "reader"}, new(pb.AuthUserGrantRoleResponse)))
	l.turn("", true)
	l.logInAll(t)

	// Chance seldom has it that a lease has a key of another's.
	must(t, l.ask(l.tokens["root"], "Lease/LeaseGrant", &pb.LeaseGrantRequest{ID: 1, TTL: 10000}, new(pb.LeaseGrantResponse)))
	must(t, l.ask(l.tokens["root"], "KV/Put", &pb.PutRequest{Key: []byte("a"), Lease: 1}, new(pb.PutResponse)))
	must(t, l.ask(l.tokens["alice"], "Lease/LeaseGrant", &pb.LeaseGrantRequest{ID: 2, TTL: 10000}, new(pb.LeaseGrantResponse)))
	for _, user := range []string{"bob", "alice", ""} {
		for id := range int64(2) {
			_ = l.ask(l.tokens[user], "Lease/LeaseRevoke", &pb.LeaseRevokeRequest{ID: 1 + id}, new(pb.LeaseRevokeResponse))
		}
	}
}

// checkVariety demands that everything was allowed to some, and refused to some for each reason.
func (l *authLoad) checkVariety(t *testing.T) {
	t.Helper()
	const denied, old = "etcdserver: permission denied", "etcdserver: revision of auth store is old"
	for _, method := range []string{"KV/Put", "KV/DeleteRange", "KV/Txn", "Lease/LeaseRevoke"} {
		count := func(user, text string) int { return l.answers[authAnswer{user, method, text}] }
		anyOld := count("other", old) > 0 || method == "Lease/LeaseRevoke"
		if count("other", "") == 0 || count("other", denied) == 0 || !anyOld || count("nobody", "etcdserver: user name is empty") == 0 {
			t.Errorf("%s is not asked by all kinds of users", method)
		}
	}
}

// ask asks as the user with this token; "" is nobody.
func (l *authLoad) ask(token, method string, request, response proto.Message) error {
	ctx, cancel := context.WithTimeout(context.Background(), callSecs*1e9)
	defer cancel()
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "token", token)
	}
	err := l.s.conn.Invoke(ctx, "/etcdserverpb."+method, request, response)
	if l.on {
		user := "other"
		switch token {
		case "":
			user = "nobody"
		case l.tokens["root"]:
			user = "root"
		}
		l.answers[authAnswer{user, method, status.Convert(err).Message()}]++
	}
	return err
}

// turn turns authentication on or off, if that is allowed.
func (l *authLoad) turn(token string, on bool) {
	var err error
	if on {
		err = l.ask(token, "Auth/AuthEnable", &pb.AuthEnableRequest{}, new(pb.AuthEnableResponse))
	} else {
		err = l.ask(token, "Auth/AuthDisable", &pb.AuthDisableRequest{}, new(pb.AuthDisableResponse))
	}
	if err == nil {
		l.on = on
	}
}

// logIn gets a user a token of now, if the user is there and authentication is on.
func (l *authLoad) logIn(t *testing.T, user string) {
	t.Helper()
	answer := new(pb.AuthenticateResponse)
	err := l.ask("", "Auth/Authenticate", &pb.AuthenticateRequest{Name: user, Password: l.passwords[user]}, answer)
	if err == nil {
		l.tokens[user] = answer.Token
	} else if user == "root" && l.on {
		t.Fatal(err)
	}
}

func (l *authLoad) logInAll(t *testing.T) {
	for _, user := range authUsers {
		l.logIn(t, user)
	}
}

func (l *authLoad) step(t *testing.T) {
	switch n := l.IntN(100); {
	case n < 75:
		l.changeData(t, true)
	case n < 86:
		l.changeAuth(t)
	case n < 87:
		l.turn(l.adminToken(), false)
	case n < 92:
		l.turn(l.adminToken(), true)
	default:
		l.logInAll(t)
	}
}

func pick[T any](l *authLoad, from []T) T { return from[l.IntN(len(from))] }

func (l *authLoad) anyToken() string { return l.tokens[pick(l, authUsers)] }

// adminToken is that of root as a rule, who may change users and roles though it may be out of date.
func (l *authLoad) adminToken() string {
	if l.IntN(10) == 0 {
		return l.anyToken()
	}
	return l.tokens["root"]
}

// keyRange is what a request names: never a range that ends before it begins.
func (l *authLoad) keyRange() (key, end []byte) {
	from, to := pick(l, authKeys), pick(l, authEnds)
	if to > "\x00" && to < from {
		to = from
	}
	return []byte(from), []byte(to)
}

func (l *authLoad) put() *pb.PutRequest {
	key, _ := l.keyRange()
	put := &pb.PutRequest{Key: key, Value: []byte(fmt.Sprint(l.IntN(1000))), PrevKv: l.IntN(4) == 0}
	if l.IntN(2) == 0 {
		put.Lease = pick(l, leaseIDs[:2])
	}
	if l.IntN(8) == 0 {
		put.Value, put.IgnoreValue = nil, true
	}
	if l.IntN(8) == 0 {
		put.Lease, put.IgnoreLease = 0, true
	}
	return put
}

func (l *authLoad) deleteRange() *pb.DeleteRangeRequest {
	key, end := l.keyRange()
	return &pb.DeleteRangeRequest{Key: key, RangeEnd: end, PrevKv: l.IntN(4) == 0}
}

func (l *authLoad) txn(depth int) *pb.TxnRequest {
	txn := &pb.TxnRequest{}
	for range l.IntN(3) {
		key, end := l.keyRange()
		guard := &pb.Compare{Key: key, RangeEnd: end, Target: pb.Compare_VERSION, Result: pb.Compare_GREATER}
		guard.TargetUnion = &pb.Compare_Version{Version: int64(l.IntN(2))}
		txn.Compare = append(txn.Compare, guard)
	}
	for _, branch := range []*[]*pb.RequestOp{&txn.Success, &txn.Failure} {
		for range l.IntN(3) {
			op := &pb.RequestOp{}
			switch n := l.IntN(8); {
			case n < 3:
				op.Request = &pb.RequestOp_RequestPut{RequestPut: l.put()}
			case n < 5:
				op.Request = &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: l.deleteRange()}
			case n < 7 || depth == 0:
				key, end := l.keyRange()
				op.Request = &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key, RangeEnd: end}}
			default:
				op.Request = &pb.RequestOp_RequestTxn{RequestTxn: l.txn(depth - 1)}
			}
			*branch = append(*branch, op)
		}
	}
	return txn
}

// changeData asks for a change of keys or leases, by whoever may or may not. Some make etcd commit its database.
func (l *authLoad) changeData(t *testing.T, commits bool) {
	token := l.anyToken()
	switch n := l.IntN(100); {
	case n < 35:
		_ = l.ask(token, "KV/Put", l.put(), new(pb.PutResponse))
	case n < 50:
		_ = l.ask(token, "KV/DeleteRange", l.deleteRange(), new(pb.DeleteRangeResponse))
	case n < 75:
		_ = l.ask(token, "KV/Txn", l.txn(2), new(pb.TxnResponse))
	case n < 87:
		_ = l.ask(token, "Lease/LeaseGrant", &pb.LeaseGrantRequest{ID: pick(l, leaseIDs), TTL: 10000}, new(pb.LeaseGrantResponse))
	case !commits:
	case n < 95:
		_ = l.ask(token, "Lease/LeaseRevoke", &pb.LeaseRevokeRequest{ID: pick(l, leaseIDs)}, new(pb.LeaseRevokeResponse))
	case n < 98:
		l.logIn(t, pick(l, authUsers))
	default:
		newest := new(pb.RangeResponse)
		if l.ask(l.tokens["root"], "KV/Range", &pb.RangeRequest{Key: []byte("a")}, newest) == nil {
			request := &pb.CompactionRequest{Revision: max(1, newest.Header.Revision-int64(l.IntN(200)))}
			_ = l.ask(token, "KV/Compact", request, new(pb.CompactionResponse))
		}
	}
}

// changeAuth asks for a change of users or roles.
func (l *authLoad) changeAuth(t *testing.T) {
	token, user, role := l.adminToken(), pick(l, authUsers), pick(l, authRoles)
	if !l.on && (user == "root" || role == "root") {
		return // There might be no way to turn authentication on again.
	}
	switch l.IntN(12) {
	case 0, 1:
		request := &pb.AuthUserAddRequest{Name: user, Password: fmt.Sprint(l.IntN(1000)), Options: &authpb.UserAddOptions{NoPassword: l.IntN(5) == 0}}
		password := request.Password
		if l.ask(token, "Auth/UserAdd", request, new(pb.AuthUserAddResponse)) == nil {
			l.passwords[user] = password
			l.logIn(t, user)
		}
	case 2:
		if l.IntN(3) == 0 {
			_ = l.ask(token, "Auth/UserDelete", &pb.AuthUserDeleteRequest{Name: user}, new(pb.AuthUserDeleteResponse))
		}
	case 3:
		request := &pb.AuthUserChangePasswordRequest{Name: user}
		password := fmt.Sprint(l.IntN(1000))
		if user != "root" && l.IntN(2) == 0 {
			// What no etcdctl sends: a hash, or what is none.
			request.HashedPassword = pick(l, []string{"", "not base64", base64.StdEncoding.EncodeToString([]byte("no hash")), "YWI=\r\n", "YWJ=", "YWI"})
		} else {
			request.Password = password
		}
		if l.ask(token, "Auth/UserChangePassword", request, new(pb.AuthUserChangePasswordResponse)) == nil {
			l.passwords[user] = password
		}
	case 4, 5:
		_ = l.ask(token, "Auth/UserGrantRole", &pb.AuthUserGrantRoleRequest{User: user, Role: role}, new(pb.AuthUserGrantRoleResponse))
	case 6:
		_ = l.ask(token, "Auth/UserRevokeRole", &pb.AuthUserRevokeRoleRequest{Name: user, Role: role}, new(pb.AuthUserRevokeRoleResponse))
	case 7:
		_ = l.ask(token, "Auth/RoleAdd", &pb.AuthRoleAddRequest{Name: role}, new(pb.AuthRoleAddResponse))
	case 8:
		if l.IntN(3) == 0 {
			_ = l.ask(token, "Auth/RoleDelete", &pb.AuthRoleDeleteRequest{Role: role}, new(pb.AuthRoleDeleteResponse))
		}
	case 9, 10:
		found := new(pb.AuthRoleGetResponse)
		_ = l.ask(l.tokens["root"], "Auth/RoleGet", &pb.AuthRoleGetRequest{Role: role}, found)
		if len(found.Perm) >= permissionsMax || role == "root" {
			return
		}
		request := &pb.AuthRoleGrantPermissionRequest{Name: role}
		if l.IntN(20) > 0 {
			// Now and then of a type that is none, of no key, or of a range that is none.
			request.Perm = &authpb.Permission{PermType: authpb.Permission_Type(l.IntN(4)), Key: []byte(pick(l, authKeys)), RangeEnd: []byte(pick(l, authEnds))}
			if l.IntN(20) == 0 {
				request.Perm.Key = nil
			}
		}
		_ = l.ask(token, "Auth/RoleGrantPermission", request, new(pb.AuthRoleGrantPermissionResponse))
	case 11:
		found := new(pb.AuthRoleGetResponse)
		_ = l.ask(l.tokens["root"], "Auth/RoleGet", &pb.AuthRoleGetRequest{Role: role}, found)
		request := &pb.AuthRoleRevokePermissionRequest{Role: role, Key: []byte(pick(l, authKeys)), RangeEnd: []byte(pick(l, authEnds))}
		if len(found.Perm) > 0 && l.IntN(3) > 0 {
			granted := pick(l, found.Perm)
			request.Key, request.RangeEnd = granted.Key, granted.RangeEnd
		}
		_ = l.ask(token, "Auth/RoleRevokePermission", request, new(pb.AuthRoleRevokePermissionResponse))
	}
}

func (s *server) database() string { return filepath.Join(s.dataDir(), "member", "snap", "db") }

func (s *server) authStatus(t *testing.T, token string) *pb.StatusResponse {
	t.Helper()
	ctx := metadata.AppendToOutgoingContext(patience(t), "token", token)
	status, err := pb.NewMaintenanceClient(s.conn).Status(ctx, &pb.StatusRequest{})
	must(t, err)
	return status
}

// rowsOf has the rows of a bucket of a file that no etcd has open.
func rowsOf(t *testing.T, file, bucket string) map[string]string {
	t.Helper()
	database, err := bbolt.Open(file, 0o600, &bbolt.Options{ReadOnly: true})
	must(t, err)
	defer database.Close()
	rows := make(map[string]string)
	must(t, database.View(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte(bucket)).ForEach(func(key, value []byte) error {
			rows[string(key)] = string(value)
			return nil
		})
	}))
	return rows
}

// tokenOf goes with every call of a connection.
type tokenOf string

func (token tokenOf) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"token": string(token)}, nil
}

func (tokenOf) RequireTransportSecurity() bool { return false }

// becomeRoot makes all further calls root's, if authentication is on.
func (s *server) becomeRoot(t *testing.T, password string) {
	t.Helper()
	answer, err := pb.NewAuthClient(s.conn).Authenticate(patience(t), &pb.AuthenticateRequest{Name: "root", Password: password})
	if err != nil {
		if !strings.Contains(err.Error(), "not enabled") {
			t.Fatalf("%s: %v", s.name, err)
		}
		return
	}
	_ = s.conn.Close()
	s.conn, err = grpc.NewClient(strings.TrimPrefix(s.clientURL, "http://"), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(messageBytes)), grpc.WithPerRPCCredentials(tokenOf(answer.Token)))
	must(t, err)
}

// listAuth tells all that is to be known of users and roles.
func (s *server) listAuth(t *testing.T) (told string) {
	t.Helper()
	ctx, client := patience(t), pb.NewAuthClient(s.conn)
	tell := func(answer interface {
		proto.Message
		GetHeader() *pb.ResponseHeader
	}, err error) {
		must(t, err)
		*answer.GetHeader() = pb.ResponseHeader{}
		told += fmt.Sprintln(answer)
	}
	state, err := client.AuthStatus(ctx, &pb.AuthStatusRequest{})
	tell(state, err)
	users, err := client.UserList(ctx, &pb.AuthUserListRequest{})
	tell(users, err)
	for _, user := range users.Users {
		found, err := client.UserGet(ctx, &pb.AuthUserGetRequest{Name: user})
		tell(found, err)
	}
	roles, err := client.RoleList(ctx, &pb.AuthRoleListRequest{})
	tell(roles, err)
	for _, role := range roles.Roles {
		found, err := client.RoleGet(ctx, &pb.AuthRoleGetRequest{Role: role})
		tell(found, err)
	}
	return told
}
