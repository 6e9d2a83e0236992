// Compaction that nobody asks for, in both servers: the floor follows the clock, and what is young stays.
package interop

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

const (
	keptFor = time.Second
	// Enough for the first, which is that of the start, and for some that follow.
	compactionsSeen = 4
	compactedSecs   = 60
)

func TestAutoCompaction(t *testing.T) {
	a, b := startPair(t, "--auto-compaction-mode=periodic", "--auto-compaction-retention="+keptFor.String())
	inBoth(t, a, b, followsPeriod)
}

// answered is a put, and when its answer came.
type answered struct {
	at       time.Time
	revision int64
}

// followsPeriod writes while the server compacts, then waits until all that is written is too old to be kept.
func followsPeriod(s *server) error {
	ctx, cancel := context.WithTimeout(context.Background(), compactedSecs*time.Second)
	defer cancel()
	var puts []answered
	floors := []int64{0}
	for len(floors) <= compactionsSeen {
		put, err := pb.NewKVClient(s.conn).Put(ctx, &pb.PutRequest{Key: []byte("k"), Value: fmt.Append(nil, len(puts))})
		if err != nil {
			return fmt.Errorf("the floors were %v: %w", floors, err)
		}
		puts = append(puts, answered{time.Now(), put.Header.Revision})
		floor, err := floorOf(ctx, s)
		if err != nil {
			return err
		}
		if last := floors[len(floors)-1]; floor < last {
			return fmt.Errorf("the floor went back from %d to %d", last, floor)
		} else if floor > last {
			floors = append(floors, floor)
		}
	}
	newest := puts[len(puts)-1].revision
	for floor := int64(0); floor < newest; {
		var err error
		if floor, err = floorOf(ctx, s); err != nil {
			return fmt.Errorf("the floor is not %d: %w", newest, err)
		} else if floor > newest {
			return fmt.Errorf("the floor is %d, beyond %d", floor, newest)
		}
	}
	s.kill()
	return checkPeriodLines(s.log.Bytes(), puts)
}

func floorOf(ctx context.Context, s *server) (int64, error) {
	hash, err := pb.NewMaintenanceClient(s.conn).HashKV(ctx, &pb.HashKVRequest{})
	if err != nil {
		return 0, err
	}
	return max(0, hash.CompactRevision), nil
}

// checkPeriodLines reads what the server logged of its compactions: each is told as it begins and as it ends, comes no
// sooner than a period after the last, goes further than that, and leaves what was written within the period.
func checkPeriodLines(log []byte, puts []answered) error {
	type line struct {
		Time     time.Time `json:"ts"`
		Message  string    `json:"msg"`
		Revision int64     `json:"revision"`
		Period   string    `json:"compact-period"`
	}
	var last line
	begun, done := 0, 0
	for text := range bytes.Lines(log) {
		var now line
		if json.Unmarshal(text, &now) != nil {
			continue
		}
		switch now.Message {
		case "failed auto periodic compaction":
			return fmt.Errorf("%s", text)
		case "completed auto periodic compaction":
			if done++; begun != done || now.Revision != last.Revision {
				return fmt.Errorf("completed what was not begun: %s", text)
			}
		case "starting auto periodic compaction":
			if begun++; begun != done+1 || now.Period != keptFor.String() {
				return fmt.Errorf("begun before the last was completed, or of another period: %s", text)
			}
			if now.Revision <= last.Revision || begun > 1 && now.Time.Sub(last.Time) < keptFor {
				return fmt.Errorf("not further than the last at %v, or too soon: %s", last.Time, text)
			}
			for _, put := range puts {
				// The next was written later still, and that is kept.
				if put.revision < now.Revision && put.at.After(now.Time.Add(-keptFor)) {
					return fmt.Errorf("revision %d was written at %v: %s", put.revision, put.at, text)
				}
			}
			last = now
		}
	}
	if done < compactionsSeen {
		return fmt.Errorf("%d compactions are told of", done)
	}
	return nil
}
