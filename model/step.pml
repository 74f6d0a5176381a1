/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The engine's steps, where the world is known: what each fact (fact_NAME) and action (do_NAME) is, which actions may_fail(a),
 * which cannot(a) be done now, and what it means to leave_state(). rows.pml is generated from src/move/rows.h, and gives pick(): the row for (state, event,
 * facts), and act(): one action of it.
 *
 * One atomic step of a keeper is one event and the first action of its row; each further action is a step of its own, so
 * that anything may come between two.
 */
#include "rows.pml"

/* Rows without actions lead on at once: nothing that others see comes between. */
inline find_row()
{
	d_step {
		do
		:: e == NO_EVENT || go -> break
		:: else ->
			found = 0;
			pick();
			if
			:: !found -> e = NO_EVENT
			:: else ->
				known = facts();
				printf("row %d %d %d %d %d\n", state[h], e - 1, known, then[h], todo[h]);
#ifdef RUNTIME
				c_code {
					step_taken(now.state[Phost->h], Phost->e - 1, Phost->known, now.then[Phost->h],
						   now.todo[Phost->h]);
				};
#endif
				known = 0;
				soon[h] = (then[h] == state[h] -> soon[h] : NO_EVENT);
				go = todo[h] != 0;
				if
				:: go
				:: else ->
					e = (then[h] != state[h] && has_enter(then[h]) -> EV_ENTER : NO_EVENT);
					if
					:: then[h] != state[h] -> leave_state()
					:: else
					fi;
					late[h] = 0;
					state[h] = then[h];
					then[h] = 0
				fi
			fi
		od;
		found = 0;
		e = NO_EVENT
	}
}

inline do_action()
{
	d_step {
		act(todo[h] % ACTIONS);
		todo[h] = todo[h] / ACTIONS;
		if
		:: todo[h] != 0
		:: else ->
			if
			:: then[h] != state[h] ->
				leave_state();
				urgent[h] = (has_enter(then[h]) -> EV_ENTER : NO_EVENT)
			:: else
			fi;
			late[h] = 0;
			state[h] = then[h];
			then[h] = 0
		fi
	}
}

/* An event @e, if there is one, and one action: of its row, or (@go) the next one of the row under way. */
inline take_step()
{
	find_row();
	if
	:: !go
	:: else ->
		if
		:: !cannot(todo[h] % ACTIONS)
		:: cannot(todo[h] % ACTIONS) -> fails = 1
		:: fault && may_fail(todo[h] % ACTIONS) ->
			faults++;
			fails = 1
		fi;
		if
		:: fails ->
			d_step {
				todo[h] = 0;
				then[h] = 0;
				urgent[h] = EV_ACTION_FAILED
			}
		:: else -> do_action()
		fi
	fi;
	e = 0;
	go = 0;
	fails = 0
}
