"""The command engine of a channel with PIM: a stream of kernel commands and ordinary requests on one clock. Compiled; in clocks.

The kernel's runs are issued command by command under the rules that `hw.pim.timeline` states. Ordinary requests wait in a
queue, of which the oldest command that the timing allows goes first (row hits before others). Both share the buses, the row
timers of the banks, and refresh. Who may use a bank is a matter of the channel's scope: with `all`, kernel and requests take
turns, rows are closed and the mode is changed between; with `set`, that holds for the banks of the set in use; with `none`,
the kernel has row buffers of its own and both go on at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hw.pim.channel import PimChannel
from hw.pim.stream import PATHS, Kind, Run
from sim.dram_burst import decode

Ints = NDArray[np.int64]

# Columns of a run.
(R_PATH, R_KIND, R_COUNT, R_GAP, R_SET, R_ROW, R_RCD, R_FENCE, R_JOINS, R_TURN, R_NAME, R_WIDTH) = range(12)
# Configuration of a channel.
(
    K_ACT, K_PRE, K_WRCD, K_RDRCD, K_RAS, K_RC, K_RP, K_RP_REF, K_RRD, K_RTP, K_WRPRE, K_RTW, K_WTR, K_REFI, K_RFC, K_REF1, K_REF,
    K_REFRESH, K_SCOPE, K_MODE, K_QUANTUM, K_QUEUE, K_PCS, K_RANKS, K_GROUPS, K_BANKS, K_BL, K_CL, K_CWL, K_CCDS, K_CCDL, K_CCDR,
    K_RRDS, K_FAW, K_WTRS, K_BURSTS, K_DUAL, K_SHARED, K_COUNT,
) = range(39)  # fmt: skip
# Counters that a run returns.
(S_PIM_END, S_END, S_OPENS, S_BANKS, S_CLOSES, S_REF, S_TURNS, S_ACT, S_PRE, S_BURSTS, S_HITS, S_LOGGED, S_COUNT) = range(13)
# Commands of a log: those of a kernel are 100 + the number of their name.
L_ACT, L_PRE, L_RD, L_WR, L_PREAB, L_REF, L_PIM_ACT, L_PIM_PRE, L_PIM = 0, 1, 2, 3, 4, 5, 6, 7, 100

SCOPES = ("all", "set", "none")


def configuration(channel: PimChannel, *, refresh: bool, quantum: int, queue: int) -> Ints:
    """The rules of a channel in clocks. `quantum` bursts of ordinary requests end their turn."""
    rules, preset = channel.rules, channel.preset
    cfg = np.zeros(K_COUNT, np.int64)
    values = {
        K_ACT: rules.act, K_PRE: rules.pre, K_WRCD: rules.write_after_act, K_RDRCD: rules.read_after_act(), K_RAS: rules.ras,
        K_RC: rules.rc, K_RP: rules.rp, K_RP_REF: rules.rp_ref, K_RRD: rules.rrd, K_RTP: rules.read_to_pre, K_WRPRE: rules.write_to_pre,
        K_RTW: rules.read_to_write, K_WTR: rules.write_to_read, K_REFI: rules.refi, K_RFC: rules.rfc, K_REF1: rules.refresh_one,
        K_REF: rules.refresh, K_REFRESH: refresh, K_SCOPE: SCOPES.index(channel.scope), K_MODE: channel.mode_clocks, K_QUANTUM: quantum,
        K_QUEUE: queue, K_PCS: preset.pseudo_channels, K_RANKS: preset.ranks, K_GROUPS: preset.bank_groups, K_BANKS: preset.banks,
        K_BL: preset.n_bl, K_CL: preset.n_cl, K_CWL: preset.n_cwl, K_CCDS: max(preset.n_ccd_s, preset.n_bl), K_CCDL: preset.n_ccd_l,
        K_CCDR: max(preset.n_ccd_r, preset.n_bl), K_RRDS: preset.n_rrd_s, K_FAW: preset.n_faw,
        K_WTRS: preset.n_cwl + preset.n_bl + preset.n_wtr_s, K_BURSTS: preset.bursts_per_request, K_DUAL: channel.row_buffers == 2,
        K_SHARED: preset.command_bus == "shared",
    }  # fmt: skip
    for index, value in values.items():
        cfg[index] = value
    return cfg


def table(channel: PimChannel, runs: list[Run]) -> tuple[Ints, list[str]]:
    """The runs as rows, and the names that their last column numbers."""
    names = list(dict.fromkeys(run.name for run in runs))
    number = {name: index for index, name in enumerate(names)}
    rules = channel.rules
    rows = np.zeros((len(runs), R_WIDTH), np.int64)
    for row, run in zip(rows, runs, strict=True):
        rcd = rules.read_after_act(run.rcd) if run.kind is Kind.READ else rules.write_after_act
        row[:] = (
            run.path, run.kind, run.count, run.gap, run.bank_set, run.row, rcd, run.fence, run.joins, run.turn, number[run.name],
        )  # fmt: skip
    return rows, names


def bank_sets(channel: PimChannel) -> tuple[Ints, Ints]:
    """For every bank its set or -1; for every set (banks, activates, spacing)."""
    of_bank = np.full(channel.banks, -1, np.int64)
    shape = np.zeros((len(channel.sets), 3), np.int64)
    for index, part in enumerate(channel.sets):
        of_bank[list(part.members)] = index
        shape[index] = part.banks, part.activates, part.spacing
    return of_bank, shape


@njit(cache=True, nogil=True)
def run(
    cfg: Ints,
    runs: Ints,
    of_bank: Ints,
    sets: Ints,
    fields: Ints,
    addresses: Ints,  # burst index of the first burst of each request
    writes: Any,  # bool per request
    arrivals: Ints,  # clock per request; empty: each arrives as soon as the queue has room
    latency: Ints,  # out: clocks from arrival to the last data beat, per request
    record: Ints,  # out: rows (clock, command, bank or set, row)
) -> Ints:
    """Everything to its end; returns the counters."""
    far = np.int64(1) << 60
    none = np.int64(-1)
    scope, dual, shared = cfg[K_SCOPE], cfg[K_DUAL] != 0, cfg[K_SHARED] != 0
    pcs, ranks, groups, banks = cfg[K_PCS], cfg[K_RANKS], cfg[K_GROUPS], cfg[K_BANKS]
    n_banks = pcs * ranks * groups * banks
    n_sets = sets.shape[0]
    n_runs = runs.shape[0]
    stats = np.zeros(S_COUNT, np.int64)

    # the kernel: rows of sets, paths
    p_row = np.full(n_sets, none, np.int64)
    p_act = np.zeros(n_sets, np.int64)
    p_pre = np.zeros(n_sets, np.int64)
    p_read = np.zeros(n_sets, np.int64)
    p_write = np.zeros(n_sets, np.int64)
    path_next = np.zeros(PATHS, np.int64)
    head = np.zeros(PATHS, np.int64)
    done_of = np.zeros(PATHS, np.int64)  # commands issued of the run at the head
    for p in range(PATHS):
        while head[p] < n_runs and runs[head[p], R_PATH] != p:
            head[p] += 1
    next_read = next_write = np.int64(0)
    next_p_act = np.int64(0)
    floor = np.int64(0)  # last array command
    first = np.int64(-1)  # first command of the run at the head of the array path
    fence = np.int64(0)
    next_fence = np.int64(0)
    while next_fence < n_runs and runs[next_fence, R_FENCE] == 0:
        next_fence += 1
    ahead = np.int64(head[0] + 1)  # the array run after the one at the head
    while ahead < n_runs and runs[ahead, R_PATH] != 0:
        ahead += 1
    pim_left = n_runs > 0
    pim_turn = n_runs > 0  # the kernel has the channel

    # ordinary requests: rows of banks
    row = np.full(n_banks, none, np.int64)
    may_act = np.zeros(n_banks, np.int64)
    may_pre = np.zeros(n_banks, np.int64)
    ready = np.zeros((2, n_banks), np.int64)
    g_act = np.zeros(pcs * ranks * groups, np.int64)
    g_col = np.zeros((2, pcs * ranks * groups), np.int64)
    r_col = np.zeros((2, pcs * ranks), np.int64)
    c_act = np.zeros(pcs, np.int64)
    faw_at = np.full((pcs, 4), -far, np.int64)
    faw_i = np.zeros(pcs, np.int64)
    depth = cfg[K_QUEUE]
    s_bank = np.full(depth, none, np.int64)
    s_row = np.zeros(depth, np.int64)
    s_seq = np.zeros(depth, np.int64)
    s_req = np.zeros(depth, np.int64)
    s_write = np.zeros(depth, np.int64)
    waiting = 0
    n_requests = addresses.shape[0]
    per = cfg[K_BURSTS]
    n_bursts = n_requests * per
    left = np.full(n_requests, per, np.int64)
    open_loop = arrivals.shape[0] > 0
    entering = np.int64(0)
    served = np.int64(0)
    in_turn = np.int64(0)
    mem_from = np.int64(0)  # the mode allows ordinary commands from here
    last_data = np.int64(-far)  # last column command that used the data bus
    last_column = np.int64(-far)  # last column command of the other party
    last_row = np.int64(-far)

    row_free = np.int64(0)
    may_refresh = np.int64(0)
    due = cfg[K_REFI] if cfg[K_REFRESH] != 0 else far
    now = np.int64(0)
    logged = 0
    logging = record.shape[0]

    while pim_left or served < n_bursts:
        # requests enter the queue
        while entering < n_bursts and waiting < depth:
            req = entering // per
            if open_loop and arrivals[req] > now:
                break
            part = entering - req * per
            if part == 0:
                latency[req] = arrivals[req] if open_loop else now
            bank, at_row = decode(addresses[req] + part, fields, ranks, groups, banks)
            slot = 0
            while s_bank[slot] >= 0:
                slot += 1
            s_bank[slot], s_row[slot], s_seq[slot], s_req[slot] = bank, at_row, entering, req
            s_write[slot] = 1 if writes[req] else 0
            waiting += 1
            entering += 1

        # fences of the kernel, and turns before them
        if pim_left and pim_turn:
            while next_fence < n_runs:
                reached = True
                for p in range(PATHS):
                    if head[p] < next_fence:
                        reached = False
                if not reached:
                    break
                at = max(path_next[0], path_next[1], path_next[2])
                fence = max(fence, at)
                turn = runs[next_fence, R_TURN] != 0
                next_fence += 1
                while next_fence < n_runs and runs[next_fence, R_FENCE] == 0:
                    next_fence += 1
                if turn and scope < 2:
                    wanted = False
                    if now < fence and open_loop and waiting == 0 and entering < n_bursts:
                        wanted = arrivals[entering // per] <= fence
                    for slot in range(depth):
                        if s_bank[slot] >= 0 and (scope == 0 or of_bank[s_bank[slot]] >= 0):
                            wanted = True
                    if wanted:
                        pim_turn = False
                        break
            if not pim_turn:
                # the kernel's rows are closed, the mode is left
                at = max(fence, row_free)
                some = False
                for s in range(n_sets):
                    if p_row[s] != none:
                        some = True
                        at = max(at, p_pre[s])
                if some:
                    row_free = at + cfg[K_PRE]
                    may_refresh = max(may_refresh, at + cfg[K_RP_REF])
                    stats[S_CLOSES] += 1
                for s in range(n_sets):
                    if p_row[s] != none:
                        p_row[s] = none
                        p_act[s] = max(p_act[s], at + cfg[K_RP])
                for b in range(n_banks):
                    if of_bank[b] >= 0:
                        may_act[b] = max(may_act[b], p_act[of_bank[b]])
                mem_from = max(at, fence) + cfg[K_MODE]
                in_turn = np.int64(0)
                stats[S_TURNS] += 1
                continue
        if pim_left and not pim_turn:
            idle = True
            for slot in range(depth):
                if s_bank[slot] >= 0 and (scope == 0 or of_bank[s_bank[slot]] >= 0):
                    idle = False
            if idle or in_turn >= cfg[K_QUANTUM]:
                at = max(now, mem_from, row_free)
                some = False
                for b in range(n_banks):
                    if row[b] != none and (scope == 0 or of_bank[b] >= 0):
                        some = True
                        at = max(at, may_pre[b])
                if some:
                    row_free = at + cfg[K_PRE]
                    may_refresh = max(may_refresh, at + cfg[K_RP_REF])
                    stats[S_PRE] += 1
                for b in range(n_banks):
                    if of_bank[b] >= 0 or scope == 0:
                        if row[b] != none:
                            row[b] = none
                            may_act[b] = max(may_act[b], at + cfg[K_RP])
                        if of_bank[b] >= 0:
                            p_act[of_bank[b]] = max(p_act[of_bank[b]], may_act[b])
                fence = max(fence, at + cfg[K_MODE])
                floor = max(floor, at)
                pim_turn = True
                continue

        best = far
        what = 0  # 1 column of the kernel, 2 its row, 3 row of the run after, 4 data path, 5 unit path, 6 to 8 ordinary
        which = np.int64(-1)
        if pim_left and pim_turn:
            a = head[0]
            if a < n_runs:
                kind = runs[a, R_KIND]
                s = runs[a, R_SET]
                blocked = next_fence <= a
                if kind == 2:
                    if not blocked:
                        best = max(path_next[0], fence)
                        what = 1
                elif p_row[s] == runs[a, R_ROW]:
                    if not blocked:
                        t = max(path_next[0], fence)
                        t = max(t, next_read, p_read[s]) if kind == 0 else max(t, next_write, p_write[s])
                        if t <= last_column:
                            t = last_column + 1
                        if shared and t <= last_row:
                            t = last_row + 1
                        best = t
                        what = 1
                else:
                    best = max(floor, p_pre[s], row_free) if p_row[s] != none else max(floor, p_act[s], next_p_act, row_free)
                    what = 2
                    which = a
                other = first >= 0 and ahead < n_runs and runs[ahead, R_SET] >= 0 and runs[ahead, R_SET] != s
                if other and (kind == 2 or p_row[s] == runs[a, R_ROW]):
                    s2 = runs[ahead, R_SET]
                    if p_row[s2] != runs[ahead, R_ROW]:
                        t = max(first, p_pre[s2], row_free) if p_row[s2] != none else max(first, p_act[s2], next_p_act, row_free)
                        if t < best:
                            best = t
                            what = 3
                            which = ahead
            for p in range(1, PATHS):
                h = head[p]
                if h < n_runs and next_fence > h:
                    t = max(path_next[p], fence)
                    if runs[h, R_JOINS] != 0:
                        if head[2] < h:
                            continue  # what it waits for has not begun
                        t = max(t, path_next[2])
                    if p == 1:
                        if t < last_data + cfg[K_BL]:
                            t = last_data + cfg[K_BL]
                        if t <= last_column:
                            t = last_column + 1
                    if t < best:
                        best = t
                        what = 3 + p
                        which = h
        # ordinary requests: columns of open rows, then rows
        busy = runs[head[0], R_SET] if pim_left and pim_turn and head[0] < n_runs else none
        oldest = far
        for slot in range(depth):
            b = s_bank[slot]
            if b < 0:
                continue
            if pim_left and pim_turn:
                if scope == 0:
                    continue
                if scope == 1 and of_bank[b] >= 0 and (of_bank[b] == busy or p_row[of_bank[b]] != none):
                    continue
            w = s_write[slot]
            g = b // banks
            r = g // groups
            base = max(now, mem_from)
            if row[b] == s_row[slot]:
                t = max(base, ready[w, b], g_col[w, g], r_col[w, r])
                if t <= last_column:
                    t = last_column + 1
                if shared and t <= last_row:
                    t = last_row + 1
                kind = 6
            elif row[b] != none:
                keep = False
                for k in range(depth):
                    if s_bank[k] == b and s_row[k] == row[b]:
                        keep = True
                if keep:
                    continue
                t = max(base, may_pre[b], row_free)
                kind = 7
            else:
                c = r // ranks
                t = max(base, may_act[b], g_act[g], c_act[c], faw_at[c, faw_i[c]] + cfg[K_FAW], row_free)
                kind = 8
            if t < best or (t == best and what >= 6 and (kind < what or (kind == what and s_seq[slot] < oldest))):
                best = t
                what = kind
                which = np.int64(slot)
                oldest = s_seq[slot]
        if open_loop and entering < n_bursts and waiting < depth and arrivals[entering // per] > now and arrivals[entering // per] <= best:
            now = arrivals[entering // per]
            if now < due or best >= far:
                continue
        if best >= far and due >= far:
            break  # what is left waits for nothing that could come
        if what != 4 and what != 5 and best >= due:
            # refresh: rows closed, all pseudo channels one after the other
            at = max(due, row_free)
            some = False
            for s in range(n_sets):
                if p_row[s] != none:
                    some = True
                    at = max(at, p_pre[s])
            for b in range(n_banks):
                if row[b] != none:
                    some = True
                    at = max(at, may_pre[b])
            if some:
                row_free = at + cfg[K_PRE]
                may_refresh = max(may_refresh, at + cfg[K_RP_REF])
                stats[S_CLOSES] += 1
                for s in range(n_sets):
                    if p_row[s] != none:
                        p_row[s] = none
                        p_act[s] = max(p_act[s], at + cfg[K_RP])
                for b in range(n_banks):
                    if row[b] != none:
                        row[b] = none
                        may_act[b] = max(may_act[b], at + cfg[K_RP])
                if logged < logging:
                    record[logged, 0], record[logged, 1], record[logged, 2], record[logged, 3] = at, L_PREAB, 0, none
                    logged += 1
            at = max(at, row_free, may_refresh)
            row_free = at + cfg[K_REF]
            last = at + cfg[K_REF] - cfg[K_REF1]
            for s in range(n_sets):
                p_act[s] = max(p_act[s], last + cfg[K_RFC])
            for b in range(n_banks):
                may_act[b] = max(may_act[b], last + cfg[K_RFC])
            if logged < logging:
                record[logged, 0], record[logged, 1], record[logged, 2], record[logged, 3] = at, L_REF, 0, none
                logged += 1
            stats[S_REF] += 1
            due += cfg[K_REFI]
            continue
        now = max(now, best)
        t = best
        if what == 1:
            a = head[0]
            kind = runs[a, R_KIND]
            s = runs[a, R_SET]
            path_next[0] = t + runs[a, R_GAP]
            floor = t
            if first < 0:
                first = t
            if kind == 0:
                next_write = max(next_write, t + cfg[K_RTW])
                p_pre[s] = max(p_pre[s], t + cfg[K_RTP])
            elif kind == 1:
                next_read = max(next_read, t + cfg[K_WTR])
                p_pre[s] = max(p_pre[s], t + cfg[K_WRPRE])
            if n_bursts > 0 and kind != 2:
                last_column = t
            done_of[0] += 1
            if logged < logging:
                record[logged, 0], record[logged, 1], record[logged, 2], record[logged, 3] = t, L_PIM + runs[a, R_NAME], s, runs[a, R_ROW]
                logged += 1
            if done_of[0] == runs[a, R_COUNT]:
                done_of[0] = 0
                first = none
                head[0] = ahead
                ahead += 1
                while ahead < n_runs and runs[ahead, R_PATH] != 0:
                    ahead += 1
        elif what == 2 or what == 3:
            s = runs[which, R_SET]
            if p_row[s] != none:
                row_free = t + cfg[K_PRE]
                p_act[s] = max(p_act[s], t + cfg[K_RP])
                may_refresh = max(may_refresh, t + cfg[K_RP_REF])
                p_row[s] = none
                stats[S_CLOSES] += 1
                if logged < logging:
                    record[logged, 0], record[logged, 1], record[logged, 2], record[logged, 3] = t, L_PIM_PRE, s, none
                    logged += 1
            else:
                last = t + (sets[s, 1] - 1) * sets[s, 2]
                row_free = last + cfg[K_ACT]
                next_p_act = last + cfg[K_RRD]
                p_act[s] = last + cfg[K_RC]
                p_pre[s] = last + cfg[K_RAS]
                if runs[which, R_KIND] == 0:
                    p_read[s] = last + runs[which, R_RCD]
                    p_write[s] = last + cfg[K_WRCD]
                else:
                    p_read[s] = last + cfg[K_RDRCD]
                    p_write[s] = last + runs[which, R_RCD]
                p_row[s] = runs[which, R_ROW]
                stats[S_OPENS] += sets[s, 1]
                stats[S_BANKS] += sets[s, 0]
                if n_bursts > 0:
                    for c in range(pcs):
                        c_act[c] = max(c_act[c], last + cfg[K_RRDS])
                        if dual:
                            for i in range(4):
                                faw_at[c, i] = last
                if logged < logging:
                    record[logged, 0], record[logged, 1], record[logged, 2], record[logged, 3] = t, L_PIM_ACT, s, runs[which, R_ROW]
                    logged += 1
            if n_bursts > 0:
                last_row = t
        elif what == 4 or what == 5:
            p = what - 3
            path_next[p] = t + runs[which, R_GAP]
            if p == 1 and n_bursts > 0:
                last_column = t
                if dual or scope == 0:
                    last_data = t
                    for r in range(pcs * ranks):
                        r_col[0, r] = max(r_col[0, r], t + cfg[K_BL])
                        r_col[1, r] = max(r_col[1, r], t + cfg[K_BL])
            done_of[p] += 1
            if logged < logging:
                record[logged, 0], record[logged, 1], record[logged, 2], record[logged, 3] = t, L_PIM + runs[which, R_NAME], none, none
                logged += 1
            if done_of[p] == runs[which, R_COUNT]:
                done_of[p] = 0
                head[p] += 1
                while head[p] < n_runs and runs[head[p], R_PATH] != p:
                    head[p] += 1
        else:
            b = s_bank[which]
            g = b // banks
            r = g // groups
            if what == 6:
                w = s_write[which]
                req = s_req[which]
                pc = r // ranks
                if pim_left:
                    last_column = t
                    last_data = t + (cfg[K_CWL] - cfg[K_CL] if w else 0)
                if w == 0:
                    end = t + cfg[K_CL] + cfg[K_BL]
                    g_col[0, g] = max(g_col[0, g], t + cfg[K_CCDL])
                    for k in range(pc * ranks, (pc + 1) * ranks):
                        r_col[0, k] = max(r_col[0, k], t + (cfg[K_CCDS] if k == r else cfg[K_CCDR]))
                        r_col[1, k] = max(r_col[1, k], t + cfg[K_RTW])
                    may_pre[b] = max(may_pre[b], t + cfg[K_RTP])
                else:
                    end = t + cfg[K_CWL] + cfg[K_BL]
                    g_col[1, g] = max(g_col[1, g], t + cfg[K_CCDL])
                    g_col[0, g] = max(g_col[0, g], t + cfg[K_WTR])
                    for k in range(pc * ranks, (pc + 1) * ranks):
                        r_col[1, k] = max(r_col[1, k], t + (cfg[K_CCDS] if k == r else cfg[K_CCDR]))
                        r_col[0, k] = max(r_col[0, k], t + cfg[K_WTRS])
                    may_pre[b] = max(may_pre[b], t + cfg[K_WRPRE])
                if logged < logging:
                    record[logged, 0], record[logged, 1], record[logged, 2], record[logged, 3] = t, L_WR if w else L_RD, b, row[b]
                    logged += 1
                left[req] -= 1
                if left[req] == 0:
                    latency[req] = end - latency[req]
                stats[S_END] = max(stats[S_END], end)
                s_bank[which] = none
                waiting -= 1
                served += 1
                in_turn += 1
                stats[S_BURSTS] += 1
            elif what == 7:
                row_free = t + cfg[K_PRE]
                may_act[b] = max(may_act[b], t + cfg[K_RP])
                may_refresh = max(may_refresh, t + cfg[K_RP_REF])
                row[b] = none
                stats[S_PRE] += 1
                last_row = t
                if logged < logging:
                    record[logged, 0], record[logged, 1], record[logged, 2], record[logged, 3] = t, L_PRE, b, none
                    logged += 1
            else:
                row_free = t + cfg[K_ACT]
                row[b] = s_row[which]
                may_act[b] = t + cfg[K_RC]
                may_pre[b] = t + cfg[K_RAS]
                ready[0, b] = t + cfg[K_RDRCD]
                ready[1, b] = t + cfg[K_WRCD]
                g_act[g] = t + cfg[K_RRD]
                c = r // ranks
                c_act[c] = t + cfg[K_RRDS]
                faw_at[c, faw_i[c]] = t
                faw_i[c] = (faw_i[c] + 1) & 3
                if pim_left:
                    next_p_act = max(next_p_act, t + (cfg[K_FAW] if dual else cfg[K_RRDS]))
                last_row = t
                stats[S_ACT] += 1
                if logged < logging:
                    record[logged, 0], record[logged, 1], record[logged, 2], record[logged, 3] = t, L_ACT, b, row[b]
                    logged += 1
        if pim_left and head[0] >= n_runs and head[1] >= n_runs and head[2] >= n_runs:
            pim_left = False
            stats[S_PIM_END] = max(path_next[0], path_next[1], path_next[2])
            at = max(floor, row_free)
            some = False
            for s in range(n_sets):
                if p_row[s] != none:
                    some = True
                    at = max(at, p_pre[s])
            if some and n_bursts > 0 and not dual:
                row_free = at + cfg[K_PRE]
                stats[S_CLOSES] += 1
                for s in range(n_sets):
                    p_row[s] = none
                for b in range(n_banks):
                    if of_bank[b] >= 0:
                        may_act[b] = max(may_act[b], at + cfg[K_RP], p_act[of_bank[b]])
            if n_bursts > 0 and scope == 0:
                mem_from = max(mem_from, stats[S_PIM_END] + cfg[K_MODE])
    stats[S_LOGGED] = logged
    return stats
