"""Does a policy that was trained in the learned world work in the simulator?"""
